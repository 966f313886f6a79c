package fastpath

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// sums are the counters of a class in a test: by EDNS and IP version.
type sums [4]uint64

func (s *sums) Add(n uint64, edns, ipv6 bool) {
	i := 0
	if edns {
		i++
	}
	if ipv6 {
		i += 2
	}
	s[i] += n
}

// meter is what a fast path has counted.
type meter map[uint16][4]uint64

func (m meter) Hits(class uint16) ([4]uint64, error) { return m[class], nil }

func TestCollect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counted := map[uint16]*sums{}
		a := &Accountant{}
		of := &Announcer{block: Block{Counters: func(c Class) Counters {
			s := new(sums)
			counted[c.Type] = s
			return s
		}}}
		one, _ := a.class(of, Class{Type: 1, Query: 30, Reply: 46})
		same, _ := a.class(of, Class{Type: 1, Query: 31, Reply: 47})
		other, _ := a.class(of, Class{Type: 28, Query: 30, Reply: 46})
		if one != same || one == other {
			t.Fatalf("classes %d, %d, %d", one, same, other)
		}
		collect := func(m meter) {
			t.Helper()
			if err := a.Collect(m); err != nil {
				t.Fatal(err)
			}
		}
		collect(meter{one: {1, 2, 3, 4}})
		collect(meter{one: {1, 2, 3, 10}, other: {0, 0, 5, 0}})
		if *counted[1] != (sums{1, 2, 3, 10}) || *counted[28] != (sums{0, 0, 5, 0}) {
			t.Errorf("counted %v and %v", counted[1], counted[28])
		}
		if a.Arrived() != 21 || a.Answered() != 21 || a.OverTCP() != 0 {
			t.Errorf("%d arrived, %d answered, %d over TCP", a.Arrived(), a.Answered(), a.OverTCP())
		}
		// The last hits of a block that is closed are counted before its classes are free.
		if at := a.Due(); !at.IsZero() {
			t.Errorf("classes in use can be freed at %s", at)
		}
		woken := 0
		a.OnRetire(func() { woken++ })
		a.retire(of)
		if want := time.Now().Add(2 * lingers); woken != 1 || !a.Due().Equal(want) {
			t.Errorf("woken %d times, due at %s, want %s", woken, a.Due(), want)
		}
		collect(meter{one: {2, 2, 3, 10}, other: {0, 0, 5, 0}})
		time.Sleep(2 * lingers)
		collect(meter{one: {3, 2, 3, 10}, other: {0, 0, 5, 0}})
		if counted[1][0] != 3 {
			t.Errorf("counted %v at last", counted[1])
		}
		if a.announcer(one) != nil || len(a.indexes) != 0 || !a.Due().IsZero() {
			t.Error("the classes are not free")
		}
		// The counters of an index go on when another class gets it.
		reused, _ := a.class(of, Class{Type: 16})
		if reused != one {
			t.Fatalf("class %d, want %d again", reused, one)
		}
		collect(meter{one: {4, 2, 3, 10}})
		if *counted[16] != (sums{1, 0, 0, 0}) {
			t.Errorf("counted %v in a class that got a used index", counted[16])
		}
	})
}

// The next fast path counts from zero. What it counts is not taken for a counter that
// went back.
func TestAFastPathBeginsAgain(t *testing.T) {
	a, counted := &Accountant{}, new(sums)
	of := &Announcer{block: Block{Counters: func(Class) Counters { return counted }}}
	for _, hits := range []uint64{100, 3} {
		class, ok := a.class(of, Class{Type: 1})
		if !ok {
			t.Fatal("no class")
		}
		if err := a.Collect(meter{class: {hits}}); err != nil {
			t.Fatal(err)
		}
		a.Forget()
	}
	if counted[0] != 103 || a.Arrived() != 103 {
		t.Errorf("counted %d, arrived %d", counted[0], a.Arrived())
	}
}

// free is a meter, and metrics, that fail the test while the lock is held.
type free struct {
	t *testing.T
	a *Accountant
}

func (f free) check(what string) {
	if !f.a.mu.TryLock() {
		f.t.Errorf("%s under the lock for which withdrawals wait", what)
		return
	}
	f.a.mu.Unlock()
}

func (f free) Hits(uint16) ([4]uint64, error) { f.check("a meter is read"); return [4]uint64{1}, nil }
func (f free) Add(uint64, bool, bool)         { f.check("metrics are written") }

func TestCollectKeepsNobodyWaiting(t *testing.T) {
	a := &Accountant{}
	f := free{t, a}
	of := &Announcer{block: Block{Counters: func(Class) Counters { f.check("metrics are made"); return f }}}
	a.class(of, Class{Type: 1})
	if err := a.Collect(f); err != nil || a.Arrived() != 1 {
		t.Errorf("%v, %d arrived", err, a.Arrived())
	}
}

func TestClassesSuffice(t *testing.T) {
	a, of := &Accountant{}, &Announcer{}
	for i := range 10 * Classes {
		if _, ok := a.class(of, Class{Query: 20 + i%100, Reply: 30 + i%500}); !ok {
			t.Fatalf("no class is left after %d", len(a.indexes))
		}
	}
	for i := range Classes {
		if _, ok := a.class(of, Class{Type: uint16(i)}); !ok {
			return
		}
	}
	t.Error("there are more classes than Classes")
}

func TestFewClasses(t *testing.T) {
	a, of, n := &Accountant{}, &Announcer{}, 0
	a.Limit(64)
	for i := range Classes {
		if _, ok := a.class(of, Class{Type: uint16(i)}); ok {
			n++
		}
	}
	if n != 64 {
		t.Errorf("%d classes, want 64", n)
	}
}

// lines is a log that is counted.
type lines struct{ warnings int }

func (*lines) Debugf(string, ...any)     {}
func (*lines) Infof(string, ...any)      {}
func (l *lines) Warningf(string, ...any) { l.warnings++ }
func (*lines) Errorf(string, ...any)     {}

func TestNoClassIsToldOnce(t *testing.T) {
	m := &memory{records: map[string]Record{}, room: 10}
	p, a, e, stop := publishing(t, m)
	stop()
	p.ended = false
	log := &lines{}
	p.log = log
	for i := range Classes {
		p.accountant.class(a, Class{Type: uint16(1000 + i)})
	}
	key := keyOf(t, "a.example.", 0)
	put(e, key, 1)
	early := announcement{announcer: a, size: uint8(len(key))}
	copy(early.key[:], key)
	for range 3 {
		p.publish(&early)
	}
	if log.warnings != 1 || m.Len() != 0 {
		t.Errorf("%d warnings, %d records", log.warnings, m.Len())
	}
}

func TestUsesComeToTheCache(t *testing.T) {
	m := &memory{records: map[string]Record{}, room: 10}
	p, a, e, stop := publishing(t, m)
	defer stop()
	key := keyOf(t, "a.example.", 0)
	put(e, key, 1)
	early := announcement{announcer: a, size: uint8(len(key))}
	copy(early.key[:], key)
	if err := p.try(&early); err != nil {
		t.Fatal(err)
	}
	p.CountUses()
	if n := usesOf(e, key); n != store.MaxUses {
		t.Errorf("%d uses", n)
	}
}

func usesOf(e *engine.Engine, key wire.Key) uint32 {
	v := e.Store().View(key)
	defer v.Close()
	return v.Record(store.Positive).Uses()
}

func TestQueriesOfCoreDNS(t *testing.T) {
	untracked := netip.MustParseAddrPort("10.96.0.10:53")
	idle := false
	a := &Accountant{
		Ledger: ledger.New(ledger.Config{}), Idle: func() bool { return idle },
		Untracked: func(s netip.Addr) bool { return s == untracked.Addr() },
	}
	for _, proto := range []uint8{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		a.Begin(proto)
	}
	a.End()
	if a.Arrived() != 2 || a.Answered() != 1 || a.OverTCP() != 1 {
		t.Errorf("%d arrived, %d answered, %d over TCP", a.Arrived(), a.Answered(), a.OverTCP())
	}
	flow := func(port uint16, server netip.AddrPort) ledger.Flow {
		return ledger.Flow{Proto: unix.IPPROTO_UDP, Client: netip.AddrPortFrom(netip.MustParseAddr("10.244.0.7"), port), Server: server}
	}
	tracked := netip.MustParseAddrPort("10.0.0.1:53")
	note := func(f ledger.Flow) { a.Note(f.Client, f.Server, f.Proto).Response() }
	note(flow(1, untracked))
	note(flow(2, tracked))
	hits := map[bool][]ledger.Flow{}
	a.OnHits = func(flows []ledger.Flow, inKernel bool) { hits[inKernel] = append(hits[inKernel], flows...) }
	a.Flows([]ledger.Flow{flow(3, tracked), flow(4, untracked), flow(5, untracked)})
	a.Hits([]ledger.Flow{flow(8, tracked)})
	for inKernel, want := range map[bool][]ledger.Flow{
		true:  {flow(3, tracked), flow(4, untracked), flow(5, untracked)},
		false: {flow(8, tracked)},
	} {
		if !slices.Equal(hits[inKernel], want) {
			t.Errorf("hits %v, want %v (in the kernel: %t)", hits[inKernel], want, inKernel)
		}
	}
	if a.Arrived() != 3 || a.Answered() != 2 {
		t.Errorf("%d arrived, %d answered", a.Arrived(), a.Answered())
	}
	idle = true
	note(flow(6, untracked))
	a.Flows([]ledger.Flow{flow(7, untracked)})
	if n := a.Ledger.Flows().Total(); n != 3 {
		t.Errorf("%d flows in the ledger, want 3", n)
	}
}
