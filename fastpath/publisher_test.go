package fastpath

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// memory is a sink in plain memory.
type memory struct {
	records map[string]Record // by listener and key
	room    int               // records that still fit
	rooms   int               // calls of MakeRoom
	uses    int               // calls of Uses
}

func recordKey(listener uint8, key wire.Key) string { return string(append([]byte{listener}, key...)) }

func (m *memory) Publish(r *Record) error {
	if m.room == 0 {
		return ErrNoRoom
	}
	if held, there := m.records[recordKey(r.Listener, r.Key)]; !there || !held.Stored.Equal(r.Stored) {
		m.room--
		own := *r
		own.Answer.Body = append([]byte(nil), r.Answer.Body...)
		m.records[recordKey(r.Listener, r.Key)] = own
	}
	return nil
}

func (m *memory) Withdraw(listener uint8, key wire.Key) bool {
	_, there := m.records[recordKey(listener, key)]
	delete(m.records, recordKey(listener, key))
	return there
}

func (m *memory) Clear()   { clear(m.records) }
func (m *memory) Len() int { return len(m.records) }

func (m *memory) MakeRoom(locked func(func())) error {
	locked(func() { m.room, m.rooms = 1000, m.rooms+1 })
	return nil
}

func (m *memory) Uses(locked func(func()), fn func(uint16, uint8, wire.Key, uint32)) {
	m.uses++
	var all []Record
	locked(func() {
		for _, r := range m.records {
			all = append(all, r)
		}
	})
	for _, r := range all {
		fn(r.Class, r.Listener, r.Key, 5)
	}
}

// silent is a log that fails the test.
type silent struct{ t testing.TB }

func (l silent) Debugf(f string, a ...any)   { l.t.Errorf(f, a...) }
func (l silent) Infof(f string, a ...any)    { l.t.Errorf(f, a...) }
func (l silent) Warningf(f string, a ...any) { l.t.Errorf(f, a...) }
func (l silent) Errorf(f string, a ...any)   { l.t.Errorf(f, a...) }

var (
	client = &net.UDPAddr{IP: net.IPv4(10, 244, 0, 7), Port: 40000}
	server = &net.UDPAddr{IP: net.IPv4(10, 96, 0, 10), Port: 53}
)

func keyOf(t testing.TB, name string, bits wire.Bits) wire.Key {
	t.Helper()
	key, err := wire.AppendKey(nil, name, dns.TypeA, dns.ClassINET, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// put stores an answer whose body is one byte.
func put(e *engine.Engine, key wire.Key, body byte) {
	s := e.Store()
	e.Put(key, store.Positive, &store.Entry{Stored: s.Time(time.Now()), TTL: 60, Answer: wire.Answer{Body: []byte{body}}, Answering: true}, engine.Asked{})
}

func newEngine(t testing.TB) *engine.Engine {
	t.Helper()
	e, err := engine.New(engine.Options{Store: store.Options{Bytes: store.MinBytes}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

// publishing returns a publisher for one block, and what stops it.
func publishing(t testing.TB, m *memory) (p *Publisher, a *Announcer, e *engine.Engine, stop func()) {
	t.Helper()
	e = newEngine(t)
	p = NewPublisher(m, &Accountant{}, silent{t})
	at := server.AddrPort()
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	n, err := p.Listener(at)
	if err != nil {
		t.Fatal(err)
	}
	a = p.Announce(Block{
		Engine: e, Listeners: map[netip.AddrPort]uint8{at: n}, Denials: true,
		Zone: func([]byte) string { return "." }, Counters: func(Class) Counters { return new(sums) },
	})
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { p.Run(ctx) })
	return p, a, e, func() { cancel(); run.Wait() }
}

func (p *Publisher) published(m *memory, key wire.Key) (body byte, ok bool) {
	p.locked(func() {
		var r Record
		if r, ok = m.records[recordKey(0, key)]; ok {
			body = r.Answer.Body[0]
		}
	})
	return body, ok
}

func TestPublisher(t *testing.T) {
	long := "a123456789012345678901234567890123456789012345678901234567890.b123456789012345678901234567890123456789012345678901234567890.cccc."
	for _, row := range []struct {
		name           string
		key            wire.Key
		client, server net.Addr
		room           int
		then           func(e *engine.Engine, a *Announcer, key wire.Key)
		want           byte // 0: nothing
	}{
		{"hit", keyOf(t, "a.example.", 0), client, server, 10, nil, 1},
		{"DO", keyOf(t, "a.example.", wire.DO), client, server, 10, nil, 1},
		{"no room", keyOf(t, "a.example.", 0), client, server, 0, nil, 1},
		{"CD", keyOf(t, "a.example.", wire.CD), client, server, 10, nil, 0},
		{"no RD", keyOf(t, "a.example.", wire.NoRD), client, server, 10, nil, 0},
		{"long name", keyOf(t, long, 0), client, server, 10, nil, 0},
		{"TCP", keyOf(t, "a.example.", 0), &net.TCPAddr{}, server, 10, nil, 0},
		{"another address", keyOf(t, "a.example.", 0), client, &net.UDPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 53}, 10, nil, 0},
		{"replaced", keyOf(t, "a.example.", 0), client, server, 10, func(e *engine.Engine, _ *Announcer, key wire.Key) { put(e, key, 2) }, 0},
		{"replaced and used again", keyOf(t, "a.example.", 0), client, server, 10, func(e *engine.Engine, a *Announcer, key wire.Key) {
			put(e, key, 2)
			a.Hit(client, server, key)
		}, 2},
		{"block closed", keyOf(t, "a.example.", 0), client, server, 10, func(_ *engine.Engine, a *Announcer, _ wire.Key) { a.Close() }, 0},
		{"closed and used again", keyOf(t, "a.example.", 0), client, server, 10, func(_ *engine.Engine, a *Announcer, key wire.Key) {
			a.Close()
			time.Sleep(2 * time.Second)
			a.Hit(client, server, key)
		}, 0},
		{"cache closed", keyOf(t, "a.example.", 0), client, server, 10, func(e *engine.Engine, _ *Announcer, _ wire.Key) { e.Close() }, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &memory{records: map[string]Record{}, room: row.room}
				p, a, e, stop := publishing(t, m)
				defer stop()
				put(e, row.key, 1)
				a.Hit(row.client, row.server, row.key)
				synctest.Wait()
				if row.then != nil {
					if _, ok := p.published(m, row.key); !ok {
						t.Fatal("not published before")
					}
					row.then(e, a, row.key)
					synctest.Wait()
				}
				if body, _ := p.published(m, row.key); body != row.want {
					t.Errorf("published %d, want %d", body, row.want)
				}
			})
		})
	}
}

// An answer that changes between its announcement and its publication is published as
// it is then.
func TestPublishesWhatTheCacheHas(t *testing.T) {
	m := &memory{records: map[string]Record{}, room: 10}
	e := newEngine(t)
	p := NewPublisher(m, &Accountant{}, silent{t})
	a := p.Announce(Block{Engine: e, Zone: func([]byte) string { return "." }})
	if _, err := p.Listener(server.AddrPort()); err != nil {
		t.Fatal(err)
	}
	key := keyOf(t, "a.example.", 0)
	put(e, key, 1)
	early := announcement{announcer: a, size: uint8(len(key))}
	copy(early.key[:], key)
	put(e, key, 2)
	if err := p.try(&early); err != nil {
		t.Fatal(err)
	}
	if body, _ := p.published(m, key); body != 2 {
		t.Errorf("published %d", body)
	}
	put(e, key, 3)
	if body, ok := p.published(m, key); ok {
		t.Errorf("%d is still published", body)
	}
}

// Where another handler may answer in the place of a denial, denials stay with the cache.
func TestDenialsOfNames(t *testing.T) {
	for _, denials := range []bool{false, true} {
		m := &memory{records: map[string]Record{}, room: 10}
		p, a, e, stop := publishing(t, m)
		a.block.Denials = denials
		for i, rcode := range []int{dns.RcodeSuccess, dns.RcodeNameError} {
			key := keyOf(t, fmt.Sprintf("n%d.example.", i), 0)
			entry := &store.Entry{Stored: e.Store().Time(time.Now()), TTL: 60, Answer: wire.Answer{Flags: wire.Flags(rcode), Body: []byte{1}}}
			e.Put(key, store.Negative, entry, engine.Asked{})
			early := announcement{announcer: a, size: uint8(len(key))}
			copy(early.key[:], key)
			if err := p.try(&early); err != nil {
				t.Fatal(err)
			}
			if _, ok := p.published(m, key); ok != (denials || rcode == dns.RcodeSuccess) {
				t.Errorf("denials %v: %s is published: %v", denials, dns.RcodeToString[rcode], ok)
			}
		}
		stop()
	}
}

// While writers replace answers, no published answer is ever older than the last that
// was put.
func TestNoOlderAnswerWhileAnswersChange(t *testing.T) {
	m := &memory{records: map[string]Record{}, room: 1 << 30}
	p, a, e, stop := publishing(t, m)
	defer stop()
	var wg sync.WaitGroup
	var older, seen atomic.Int64
	for w := range 4 {
		key := keyOf(t, fmt.Sprintf("w%d.example.", w), 0)
		wg.Go(func() {
			for i := 0; seen.Load() < 500 && i < 1_000_000; i++ {
				put(e, key, byte(i))
				if body, ok := p.published(m, key); ok && body != byte(i) {
					older.Add(1)
				}
				a.Hit(client, server, key)
				runtime.Gosched()
				if body, ok := p.published(m, key); ok {
					if seen.Add(1); body != byte(i) {
						older.Add(1)
					}
				}
			}
		})
	}
	wg.Wait()
	if older.Load() > 0 || seen.Load() == 0 {
		t.Errorf("%d older answers of %d that were published", older.Load(), seen.Load())
	}
}

// A cache outlives the fast path. Its changes must not touch a sink that may be gone.
func TestTheEndOfAPublisher(t *testing.T) {
	m := &memory{records: map[string]Record{}, room: 10}
	p, a, e, stop := publishing(t, m)
	key := keyOf(t, "a.example.", 0)
	put(e, key, 1)
	early := announcement{announcer: a, size: uint8(len(key))}
	copy(early.key[:], key)
	if err := p.try(&early); err != nil || p.Len() != 1 {
		t.Fatalf("%d answers: %v", p.Len(), err)
	}
	stop()
	if len(m.records) != 0 {
		t.Error("answers are left")
	}
	p.sink = nil // a use panics
	put(e, key, 2)
	if err := p.try(&early); err != nil || p.Len() != 0 {
		t.Errorf("%d answers: %v", p.Len(), err)
	}
	put(e, key, 3)
	a.Close()
}

func TestListenersKeepTheirNumbers(t *testing.T) {
	p := NewPublisher(&memory{}, &Accountant{}, silent{t})
	for i := range maxListeners {
		for range 2 {
			n, err := p.Listener(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 53))
			if err != nil || int(n) != i {
				t.Fatalf("listener %d has number %d: %v", i, n, err)
			}
		}
	}
	if _, err := p.Listener(netip.MustParseAddrPort("[::1]:53")); err == nil {
		t.Error("one listener too many has a number")
	}
	var got []uint8
	p.EachListener(netip.MustParseAddr("10.0.0.7"), func(n uint8) { got = append(got, n) })
	if len(got) != 1 || got[0] != 7 {
		t.Errorf("10.0.0.7 has the numbers %v", got)
	}
}

// Only prefetch needs to know uses at once.
func TestUsesAreReadSeldom(t *testing.T) {
	for _, row := range []struct {
		prefetch int
		at       time.Duration // of the second call
		want     int           // readings
	}{{0, time.Second, 1}, {0, usesEvery, 2}, {10, time.Second, 2}} {
		synctest.Test(t, func(t *testing.T) {
			e, err := engine.New(engine.Options{Store: store.Options{Bytes: store.MinBytes}, Prefetch: row.prefetch, Gap: time.Minute, Percentage: 10})
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			m := &memory{}
			p := NewPublisher(m, &Accountant{}, silent{t})
			p.Announce(Block{Engine: e})
			p.CountUses()
			time.Sleep(row.at)
			p.CountUses()
			if m.uses != row.want {
				t.Errorf("prefetch %d: %d readings in %s, want %d", row.prefetch, m.uses, row.at, row.want)
			}
		})
	}
}

// A reader of a socket tells of each of its hits: that publishes the answer, and allocates
// nothing.
func TestHitAt(t *testing.T) {
	m := &memory{records: map[string]Record{}, room: 10}
	p, a, e, stop := publishing(t, m)
	defer stop()
	key, at := keyOf(t, "www.example.org.", 0), netip.MustParseAddrPort("10.96.0.10:53")
	put(e, key, 7)
	a.HitAt(netip.MustParseAddrPort("10.96.0.11:53"), key)
	if _, there := p.published(m, key); there {
		t.Error("an answer at an address that is no listener's is published")
	}
	a.HitAt(at, key)
	testwait.True(t, 5*time.Second, "the answer is published", func() bool {
		body, there := p.published(m, key)
		return there && body == 7
	})
	if n := testing.AllocsPerRun(100, func() { a.HitAt(at, key) }); n > 0 {
		t.Errorf("a hit allocates %v times", n)
	}
}
