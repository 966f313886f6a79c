package socket

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/fastpath"
	"github.com/trackless-dns/trackless/internal/reuseport"
	"github.com/trackless-dns/trackless/internal/testport"
	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// testLog logs to a test.
type testLog struct{ testing.TB }

func (l testLog) Debugf(f string, a ...any)   { l.Logf(f, a...) }
func (l testLog) Infof(f string, a ...any)    { l.Logf(f, a...) }
func (l testLog) Warningf(f string, a ...any) { l.Logf(f, a...) }

// noCounter counts nothing.
type noCounter struct{}

func (noCounter) Add(int, int, time.Duration) {}

func newAccountant() *fastpath.Accountant {
	return &fastpath.Accountant{
		Ledger:    ledger.New(ledger.Config{}),
		Untracked: func(netip.Addr) bool { return true }, Idle: func() bool { return false },
	}
}

// cached returns a block that has one cached answer, for www.example.org.
func cached(t testing.TB) *Block {
	t.Helper()
	e, err := engine.New(engine.Options{Store: store.Options{Bytes: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	m := new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA)
	m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "www.example.org.", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: []byte{192, 0, 2, 1}}}
	answer, err := wire.Pack(m)
	if err != nil {
		t.Fatal(err)
	}
	key, err := wire.AppendKey(nil, "www.example.org.", dns.TypeA, dns.ClassINET, 0)
	if err != nil {
		t.Fatal(err)
	}
	e.Put(key, store.Positive, &store.Entry{Stored: e.Store().Time(time.Now()), TTL: 600, Answer: answer, Answering: true}, engine.Asked{})
	return &Block{Engine: e, Size: 1<<16 - 1, Denials: true, Hit: func(wire.Key) {}, Counter: func(Kind) Counter { return noCounter{} }}
}

// everything is a table with one block.
func everything(b *Block) *Table { return NewTable(map[string]*Entry{"\x00": {Block: b, Zone: "."}}) }

// bare is another socket at an address, as CoreDNS's.
func bare(t testing.TB, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return err
	}}
	conn, err := lc.ListenPacket(t.Context(), "udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.UDPConn)
}

// other is one that answers REFUSED, and tells of each query.
func other(t testing.TB, at netip.AddrPort, got func()) *net.UDPConn {
	t.Helper()
	conn := bare(t, at)
	go func() {
		for b := make([]byte, 512); ; {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if n < 12 || b[2]&0x80 != 0 {
				continue
			}
			got()
			b[2] |= 0x80
			b[3] = dns.RcodeRefused
			_, _ = conn.WriteTo(b[:n], from)
		}
	}()
	return conn
}

// serve answers NXDOMAIN what is passed to the conns, until they end.
func serve(wg *sync.WaitGroup, conns []*Conn) {
	for _, c := range conns {
		wg.Go(func() {
			for b := make([]byte, 512); ; {
				n, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				b[2] |= 0x80
				b[3] = dns.RcodeNameError
				_, _ = c.WriteTo(b[:n], from)
			}
		})
	}
}

// started returns a group of n sockets at a new port.
func started(t testing.TB, addr string, n int) *Group {
	t.Helper()
	return startedAt(t, testport.Unused(t, addr), n)
}

func startedAt(t testing.TB, at netip.AddrPort, n int) *Group {
	t.Helper()
	return open(t, Config{At: at, Sockets: n})
}

func open(t testing.TB, c Config) *Group {
	t.Helper()
	g := openUntended(t, c)
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// openUntended is open for a group that the test closes.
func openUntended(t testing.TB, c Config) *Group {
	t.Helper()
	c.Accountant, c.Log = newAccountant(), testLog{t}
	if c.Panicked == nil {
		c.Panicked = func(fault any) { t.Errorf("panic: %v", fault) }
	}
	if c.Others == nil {
		c.Others = func() bool { return false }
	}
	g, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	serve(&wg, g.Use(everything(cached(t))))
	t.Cleanup(wg.Wait)
	return g
}

// ask asks from an address. It returns the RCODE, and -1 without an answer.
func ask(t testing.TB, from netip.Addr, to netip.AddrPort, name string) int {
	t.Helper()
	conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	q, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	if _, err = conn.Write(q); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	b := make([]byte, 512)
	n, err := conn.Read(b)
	m := new(dns.Msg)
	if err != nil || m.Unpack(b[:n]) != nil {
		return -1
	}
	return m.Rcode
}

func loopback(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 1, byte(i)}) }

func steered(t testing.TB, g *Group) {
	t.Helper()
	testwait.True(t, 5*time.Second, "queries come to our sockets", g.Steered)
}

func TestGroup(t *testing.T) {
	t.Parallel()
	g := started(t, "127.0.0.1", 2)
	var strays atomic.Int32
	other(t, g.At(), func() { strays.Add(1) })
	g.Until(time.Now().Add(time.Hour))
	steered(t, g)
	for i := range 20 {
		if got := ask(t, loopback(i), g.At(), "WWW.example.org."); got != dns.RcodeSuccess {
			t.Errorf("client %d: a cached name is answered with %d", i, got)
		}
		if got := ask(t, loopback(i), g.At(), "no.example.org."); got != dns.RcodeNameError {
			t.Errorf("client %d: a name that is not cached is answered with %d", i, got)
		}
	}
	testwait.True(t, 5*time.Second, "all are counted", func() bool { return g.Counts() == Counts{Hits: 20, Passed: 20} })
	if a := g.config.Accountant; a.Arrived() != 20 || a.Answered() != 20 {
		t.Errorf("%d arrived, %d answered", a.Arrived(), a.Answered())
	}
	if n := strays.Load(); n > 0 {
		t.Errorf("another socket got %d queries", n)
	}
	for _, s := range g.sockets {
		if s.answered.Load() == 0 {
			t.Error("a socket got no query: clients are not spread")
		}
	}
	g.Until(time.Time{})
	testwait.True(t, 5*time.Second, "queries are left to the kernel's choice", func() bool { return !g.Steered() })
	for i := range 20 {
		if got := ask(t, loopback(i), g.At(), "www.example.org."); got != dns.RcodeNameError && got != dns.RcodeRefused {
			t.Errorf("client %d: answered with %d although the gate is closed", i, got)
		}
	}
}

// One client comes to one socket, so that it fills the buffer of that one only.
func TestAClientHasOneSocket(t *testing.T) {
	t.Parallel()
	g := started(t, "127.0.0.1", 4)
	g.Until(time.Now().Add(time.Hour))
	steered(t, g)
	for range 50 {
		ask(t, loopback(7), g.At(), "www.example.org.")
	}
	used := slices.DeleteFunc(slices.Clone(g.sockets), func(s *socket) bool { return s.answered.Load() == 0 })
	if len(used) != 1 {
		t.Errorf("the queries of one client came to %d sockets", len(used))
	}
}

func TestGroupIPv6(t *testing.T) {
	t.Parallel()
	g := started(t, "::1", 3)
	other(t, g.At(), g.Stray)
	g.Until(time.Now().Add(time.Hour))
	steered(t, g)
	// Queries of the node itself are spread by the kernel, over all sockets.
	testwait.True(t, 5*time.Second, "a cached name is answered", func() bool {
		return ask(t, netip.IPv6Loopback(), g.At(), "www.example.org.") == dns.RcodeSuccess
	})
}

// Other sockets come and go, and the queries are back at ours soon.
func TestOtherSocketsComeAndGo(t *testing.T) {
	t.Parallel()
	at := testport.Unused(t, "127.0.0.1")
	var group atomic.Pointer[Group]
	stray := func() {
		if g := group.Load(); g != nil {
			g.Stray()
		}
	}
	before := []*net.UDPConn{other(t, at, stray), other(t, at, stray)}
	g := startedAt(t, at, 2)
	group.Store(g)
	other(t, at, g.Stray)
	g.Until(time.Now().Add(time.Hour))
	steered(t, g)
	hits := func() error {
		for i := range 30 {
			if got := ask(t, loopback(i), at, "www.example.org."); got != dns.RcodeSuccess {
				return fmt.Errorf("client %d is answered with %d", i, got)
			}
		}
		return nil
	}
	foreign := func() {
		// A program of another instance, which has ended.
		for _, s := range g.sockets[:1] {
			if err := s.control(func(fd int) error {
				return reuseport.Attach(fd, g.probe.program(netip.MustParseAddr("192.0.2.1"), []int{0}))
			}); err != nil {
				t.Error(err)
			}
		}
	}
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"start", func() {}},
		{"the first goes", func() { _ = before[0].Close() }},
		{"one comes", func() { other(t, at, g.Stray) }},
		{"the second goes", func() { _ = before[1].Close() }},
		{"another program", foreign},
		{"the program is removed", func() { _ = g.sockets[0].control(reuseport.Detach) }},
	} {
		step.do()
		testwait.Until(t, 10*time.Second, step.name, hits)
	}
}

// Two instances are at one address. When one leaves no query is lost.
func TestTwoInstances(t *testing.T) {
	t.Parallel()
	first := started(t, "127.0.0.1", 2)
	other(t, first.At(), first.Stray)
	first.Until(time.Now().Add(time.Hour))
	steered(t, first)
	second := startedAt(t, first.At(), 2)
	other(t, first.At(), second.Stray)
	second.Until(time.Now().Add(time.Hour))
	steered(t, second)
	stop := make(chan struct{})
	lost := make(chan int)
	go func() {
		n := 0
		for i := 0; ; i++ {
			select {
			case <-stop:
				lost <- n
				return
			default:
			}
			if ask(t, loopback(i%50), first.At(), "www.example.org.") < 0 {
				n++
			}
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	first.Leave(ctx)
	before := second.Counts().Hits
	testwait.True(t, 10*time.Second, "the other gets the queries", func() bool { return second.Counts().Hits > before+100 && second.Steered() })
	at := first.Counts()
	testwait.True(t, 5*time.Second, "some more", func() bool { return second.Counts().Hits > before+200 })
	close(stop)
	if n := <-lost; n > 0 {
		t.Errorf("%d queries were lost", n)
	}
	if first.Counts() != at {
		t.Errorf("the one that left still gets queries: %+v, before %+v", first.Counts(), at)
	}
}

// A successor gets no query before the other leaves, so that none is lost if it is killed. If
// the other hangs, it takes them.
func TestSuccessorWaits(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name string
		end  func(first *Group, serves *atomic.Bool)
	}{
		{"it leaves", func(first *Group, _ *atomic.Bool) {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			first.Leave(ctx)
		}},
		{"it hangs", func(_ *Group, serves *atomic.Bool) { serves.Store(false) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			first := started(t, "127.0.0.1", 2)
			other(t, first.At(), first.Stray)
			first.Until(time.Now().Add(time.Hour))
			steered(t, first)
			var serves atomic.Bool
			serves.Store(true)
			killed := openUntended(t, Config{At: first.At(), Sockets: 2, Others: serves.Load})
			core := other(t, first.At(), killed.Stray)
			killed.Until(time.Now().Add(time.Hour))
			ask50 := func() {
				t.Helper()
				for i := range 50 {
					if got := ask(t, loopback(i), first.At(), "www.example.org."); got != dns.RcodeSuccess {
						t.Errorf("client %d is answered with %d", i, got)
					}
				}
			}
			ask50()
			if c := killed.Counts(); c != (Counts{}) || killed.Steered() {
				t.Errorf("the successor got queries: %+v", c)
			}
			_ = killed.Close() // without Leave, as when it is killed
			_ = core.Close()
			ask50()
			second := open(t, Config{At: first.At(), Sockets: 2, Others: serves.Load})
			other(t, first.At(), second.Stray)
			second.Until(time.Now().Add(time.Hour))
			row.end(first, &serves)
			testwait.True(t, 10*time.Second, "the successor gets the queries", func() bool {
				ask(t, loopback(1), first.At(), "www.example.org.")
				return second.Steered()
			})
			before := second.Counts().Hits
			ask50()
			if n := second.Counts().Hits - before; n != 50 {
				t.Errorf("the successor answers %d of 50", n)
			}
		})
	}
}

func TestServersTakeTurns(t *testing.T) {
	t.Parallel()
	g := started(t, "127.0.0.1", 1)
	if got := ask(t, loopback(1), g.At(), "no.example.org."); got != dns.RcodeNameError {
		t.Fatalf("answered with %d", got)
	}
	var wg sync.WaitGroup
	serve(&wg, g.Use(nil))
	if got := ask(t, loopback(1), g.At(), "no.example.org."); got != dns.RcodeNameError {
		t.Errorf("the next server: answered with %d", got)
	}
	for _, c := range g.Use(nil) {
		_ = c.Close()
		if _, _, err := c.ReadFrom(nil); err == nil {
			t.Error("a conn that ended has another query")
		}
	}
	wg.Wait() // the servers before have ended
}

func TestClientsThatAreLeftToCoreDNS(t *testing.T) {
	t.Parallel()
	g := open(t, Config{At: testport.Unused(t, "127.0.0.1"), Sockets: 1, Leave: func(client netip.AddrPort) bool { return client.Addr() == loopback(1) }})
	g.Until(time.Now().Add(time.Hour))
	steered(t, g)
	for i, want := range []int{dns.RcodeSuccess, dns.RcodeNameError, dns.RcodeSuccess} {
		if got := ask(t, loopback(i), g.At(), "www.example.org."); got != want {
			t.Errorf("client %d is answered with %d, want %d", i, got, want)
		}
	}
}

// A reader that hangs is noticed, and one that is idle or busy is not.
func TestStuck(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	g := started(t, "127.0.0.1", 2)
	b := cached(t)
	b.Counter = func(Kind) Counter { <-hang; return noCounter{} }
	var wg sync.WaitGroup
	serve(&wg, g.Use(everything(b)))
	g.Until(time.Now().Add(time.Hour))
	steered(t, g)
	if g.Stuck() {
		t.Error("idle readers are stuck")
	}
	ask(t, loopback(1), g.At(), "www.example.org.") // it hangs after the reply
	conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback(1), 0)), net.UDPAddrFromAddrPort(g.At()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write(make([]byte, 20)); err != nil {
		t.Fatal(err)
	}
	testwait.True(t, 5*time.Second, "the reader is stuck", g.Stuck)
	close(hang)
	testwait.True(t, 5*time.Second, "the reader reads again", func() bool { return !g.Stuck() })
	conns := g.Use(nil) // a server that takes nothing
	if _, err := conn.Write(make([]byte, 20)); err != nil {
		t.Fatal(err)
	}
	testwait.True(t, 5*time.Second, "the server is stuck", g.Stuck)
	serve(&wg, conns)
	testwait.True(t, 5*time.Second, "the server takes queries again", func() bool { return !g.Stuck() })
}

// loaded is a socket with a batch of queries for the cached name, whose replies go to a
// socket that nobody reads.
func loaded(t testing.TB) (s *socket, fd uintptr) {
	t.Helper()
	g := started(t, "127.0.0.1", 1)
	g.Until(time.Now().Add(time.Hour))
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	port := sink.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	s = &socket{group: g, conn: g.sockets[0].conn, raw: g.sockets[0].raw, batch: newBatch(), counters: map[counted]Counter{}}
	plain, err := new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for i := range batchSize {
		s.batch.in[i].n = uint32(copy(s.batch.queries[i][:], plain))
		s.address(i, [4]byte{127, 0, 0, 1}, port)
	}
	_ = s.control(func(d int) error { fd = uintptr(d); return nil })
	return s, fd
}

// address sets the source of a packet.
func (s *socket) address(i int, addr [4]byte, port uint16) {
	s.batch.in[i].Namelen = unix.SizeofSockaddrInet4
	name := (*unix.RawSockaddrInet4)(unsafe.Pointer(&s.batch.names[i]))
	name.Family, name.Port, name.Addr = unix.AF_INET, port>>8|port<<8, addr
}

func TestHitsAllocateNothing(t *testing.T) {
	s, fd := loaded(t)
	testwait.True(t, 5*time.Second, "queries come to our sockets", s.group.Steered)
	s.batchOf(fd, batchSize)
	before := s.answered.Load()
	if n := testing.AllocsPerRun(100, func() { s.batchOf(fd, batchSize) }); n > 0 {
		t.Errorf("a batch of %d hits allocates %v times", batchSize, n)
	}
	if hits := s.answered.Load() - before; hits != 101*batchSize {
		t.Errorf("%d hits", hits)
	}
}

func BenchmarkHit(b *testing.B) {
	for _, size := range []int{1, 12, batchSize} {
		b.Run(fmt.Sprintf("%d at a time", size), func(b *testing.B) {
			s, fd := loaded(b)
			b.ResetTimer()
			b.ReportAllocs()
			for i := 0; i < b.N; i += size {
				s.batchOf(fd, size)
			}
		})
	}
}
