//go:build privileged && load

package differential

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/fastpath"
	"github.com/trackless-dns/trackless/fastpath/kernel"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/plugin/cache"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
	"github.com/trackless-dns/trackless/test/differential/script"
)

// TestKernelSaysTheSame plays the script to the cache with the kernel's program beside it:
// the program is run for each query, and where it answers, the cache must answer the same at
// once.
func TestKernelSaysTheSame(t *testing.T) {
	testns.Root(t)
	clog.Discard()
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	p, err := kernel.Load(kernel.DefaultSize)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	if err := p.Listen(listenAt, 0, 1<<16-1); err != nil {
		t.Fatal(err)
	}
	p.Open(0, time.Now().Add(24*time.Hour))
	k := &kernelSide{program: p, real: time.Now(), realAt: monotonic(t), seen: make(tally)}
	episodes := (*steps + script.Steps - 1) / script.Steps
	t.Logf("seed %d, %d steps", *seed, episodes*script.Steps)
	for n := range episodes {
		script.Run(t, *seed, n, k.open, func() map[string]float64 { return map[string]float64{} })
		if t.Failed() {
			t.Fatalf("seed %d episode %d", *seed, n)
		}
	}
	t.Logf("%d queries over UDP, %d answered in the kernel, %d of them negative", k.seen["queries"], k.seen["hits"], k.seen["negative"])
	if k.seen["hits"] < k.seen["queries"]/40 || k.seen["negative"] == 0 {
		t.Error("the kernel answers next to nothing")
	}
}

var (
	listenAt = netip.MustParseAddrPort("10.0.0.1:53") // of the script's writers
	clientAt = netip.MustParseAddrPort("10.0.0.1:40000")
)

// kernelSide is a cache with the kernel's program beside it. Time in an episode is not that of
// the kernel. So records are held here, and the one that a query asks for is brought to the
// kernel's time for that query.
type kernelSide struct {
	program *kernel.Program
	real    time.Time     // a time of the kernel
	realAt  time.Duration // the same on its clock
	running sync.Mutex    // one query at a time is in the kernel

	t         *testing.T
	next      plugin.Handler // the cache
	announcer *fastpath.Announcer
	mu        sync.Mutex
	records   map[string]fastpath.Record
	seen      tally
}

// sees counts. Several clients ask at a time.
func (k *kernelSide) sees(what string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seen[what]++
}

// monotonic reads the kernel's clock, which no bubble changes.
func monotonic(t testing.TB) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// open makes a cache that announces its answers.
func (k *kernelSide) open(t *testing.T, corefile string, next plugin.Handler) (plugin.Handler, func()) {
	h, done := openOurs(t, corefile, next)
	c := h.(*cache.Cache)
	k.t, k.next, k.records = t, h, map[string]fastpath.Record{}
	publisher := fastpath.NewPublisher(k, &fastpath.Accountant{}, clog.NewWithPlugin("fastpath"))
	n, err := publisher.Listener(listenAt)
	if err != nil {
		t.Fatal(err)
	}
	announcer := publisher.Announce(fastpath.Block{
		Engine: c.Engine(), Listeners: map[netip.AddrPort]uint8{listenAt: n}, Denials: true,
		Zone: func([]byte) string { return "." },
	})
	k.announcer = announcer
	c.Announce(announcer)
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { publisher.Run(ctx) })
	return k, func() {
		c.Announce(nil)
		announcer.Close()
		cancel()
		run.Wait()
		done()
	}
}

// Name implements plugin.Handler.
func (*kernelSide) Name() string { return "kernel" }

// ServeDNS implements plugin.Handler.
func (k *kernelSide) ServeDNS(ctx context.Context, w dns.ResponseWriter, m *dns.Msg) (int, error) {
	if _, udp := w.RemoteAddr().(*net.UDPAddr); !udp {
		return k.next.ServeDNS(ctx, w, m)
	}
	k.sees("queries")
	query, err := m.Pack()
	if err != nil {
		k.t.Fatal(err)
	}
	asked, got := time.Now(), k.answer(query)
	rec := &lastReply{ResponseWriter: w}
	code, err := k.next.ServeDNS(ctx, rec, m)
	var q wire.Query
	if q.Parse(query) == wire.Plain {
		k.announcer.Hit(w.RemoteAddr(), w.LocalAddr(), q.Key()) // not only after a second query
	}
	if got == nil {
		return code, err
	}
	k.sees("hits")
	if len(got.Answer) == 0 {
		k.sees("negative")
	}
	if took := time.Since(asked); took > 0 || rec.msg == nil || shown(got) != shown(rec.msg) {
		k.t.Errorf("after %s the cache says\n%v\nthe kernel said\n%v", took, rec.msg, got)
	}
	return code, err
}

// lastReply keeps the reply.
type lastReply struct {
	dns.ResponseWriter
	msg *dns.Msg
}

func (r *lastReply) WriteMsg(m *dns.Msg) error {
	r.msg = m.Copy()
	return r.ResponseWriter.WriteMsg(m)
}

// shown is a message without its OPT record, which CoreDNS's server adds.
func shown(m *dns.Msg) string {
	m = m.Copy()
	for i, rr := range m.Extra {
		if rr.Header().Rrtype == dns.TypeOPT {
			m.Extra = append(m.Extra[:i:i], m.Extra[i+1:]...)
			break
		}
	}
	return m.String()
}

// answer returns what the kernel's program replies now, or nil if it passes the query on.
func (k *kernelSide) answer(query []byte) *dns.Msg {
	k.running.Lock()
	defer k.running.Unlock()
	var q wire.Query
	if q.Parse(query) != wire.Plain {
		return k.run(query)
	}
	k.mu.Lock()
	r, held := k.records[string(q.Key())]
	k.mu.Unlock()
	if !held {
		return nil
	}
	// The record's next second must not come while the program runs.
	const short = 500 * time.Microsecond
	age := time.Since(r.Stored)
	if age%time.Second > time.Second-short {
		return nil
	}
	for {
		began := monotonic(k.t)
		r.Stored = k.real.Add(began - k.realAt - age)
		if err := k.program.Table.Publish(&r); errors.Is(err, fastpath.ErrTooLarge) {
			return nil
		} else if errors.Is(err, fastpath.ErrNoRoom) {
			if err := k.program.Table.MakeRoom(func(f func()) { f() }); err != nil {
				k.t.Fatal(err)
			}
			continue
		} else if err != nil {
			k.t.Fatal(err)
		}
		got := k.run(query)
		k.program.Table.Withdraw(0, r.Key)
		if monotonic(k.t)-began < short { // else the machine stalled
			return got
		}
	}
}

// run runs the program for a query.
func (k *kernelSide) run(query []byte) *dns.Msg {
	const passOn = 0xffffffff // TC_ACT_UNSPEC
	frame := frameOf(query)
	verdict, out, err := k.program.BPF().Test(frame)
	if err != nil {
		k.t.Fatal(err)
	}
	if verdict == passOn {
		if !bytes.Equal(out, frame) {
			k.t.Errorf("a query that was passed on has changed:\n%x\n%x", frame, out)
		}
		return nil
	}
	const headers = 14 + 20 + 8
	m := new(dns.Msg)
	if err := m.Unpack(out[headers:]); err != nil {
		k.t.Errorf("the kernel's reply: %v", err)
		return nil
	}
	return m
}

// frameOf is a frame to the loopback device, whose address is zero.
func frameOf(payload []byte) []byte {
	frame := make([]byte, 14+20+8, 14+20+8+len(payload))
	binary.BigEndian.PutUint16(frame[12:], unix.ETH_P_IP)
	ip := frame[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(20+8+len(payload)))
	copy(ip[12:], clientAt.Addr().AsSlice())
	copy(ip[16:], listenAt.Addr().AsSlice())
	binary.BigEndian.PutUint16(ip[20:], clientAt.Port())
	binary.BigEndian.PutUint16(ip[22:], listenAt.Port())
	binary.BigEndian.PutUint16(ip[24:], uint16(8+len(payload)))
	return append(frame, payload...)
}

// The methods of fastpath.Sink.

func (k *kernelSide) Publish(r *fastpath.Record) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	own := *r
	own.Key = bytes.Clone(r.Key)
	own.Answer.Body, own.Answer.TTLs = bytes.Clone(r.Answer.Body), bytes.Clone(r.Answer.TTLs)
	k.records[string(own.Key)] = own
	return nil
}

func (k *kernelSide) Withdraw(_ uint8, key wire.Key) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, held := k.records[string(key)]
	delete(k.records, string(key))
	return held
}

func (k *kernelSide) Clear() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.records)
}

func (k *kernelSide) Len() int                                                 { return 0 }
func (k *kernelSide) MakeRoom(func(func())) error                              { return errors.ErrUnsupported }
func (k *kernelSide) Uses(func(func()), func(uint16, uint8, wire.Key, uint32)) {}
