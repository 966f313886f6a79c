package admission

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trackless-dns/trackless/agent/fairness"
	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/internal/cgroup"
)

// A source that floods is thinned out while others are held up, and step by step less when
// they no longer are.
func TestThinning(t *testing.T) {
	greedy, other := flooder()
	both := []netip.Addr{greedy, other}
	var th thinning
	var lost uint64
	for step, tc := range []struct {
		windows     int
		late        bool
		lost        uint64 // in each window
		floods      []netip.Addr
		pressed     bool
		from        int
		least, most float64 // of the part that passes
	}{
		{3, true, 1, nil, false, 0, 0, 0},                                       // nobody floods
		{3, false, 0, both[:1], false, 0, 0, 0},                                 // nobody is held up
		{3, false, floodsAt - 1, both[:1], false, 0, 0, 0},                      // hardly anybody
		{1, true, 0, both[:1], false, 1, firstPass, firstPass},                  // goroutines run late
		{1, false, 7, both[:1], false, 1, firstPass, firstPass},                 // packets were lost, perhaps then
		{1, false, 7, both[:1], false, 1, firstPass / 2, firstPass / 2},         // packets are lost
		{3, false, 0, both[:1], false, 1, firstPass / 2, firstPass / 2},         // it stays for some time
		{1, false, 0, both[:1], false, 1, firstPass * 0.625, firstPass * 0.625}, // and grows
		{8, false, 0, both[:1], false, 1, firstPass * 0.8, firstPass * 0.82},    // slowly where it was too much
		{1, true, 0, nil, true, 1, firstPass * 0.4, firstPass * 0.41},           // it loses nothing more, but goroutines run late
		{3, false, 0, nil, true, 1, firstPass * 0.4, firstPass * 0.41},
		{20, true, 3, both, false, 2, leastPass, leastPass},
		{100, false, 0, both, false, 2, 2 * leastPass, 20 * leastPass},
		{15, false, 0, nil, false, 0, 0, 0}, // the flood is over
	} {
		for range tc.windows {
			lost += tc.lost
			th.next(window{late: tc.late, overflow: func() uint64 { return lost }, floods: tc.floods, pressed: tc.pressed})
		}
		if len(th.from) != tc.from || tc.from > 0 && (th.pass < tc.least || th.pass > tc.most) {
			t.Errorf("step %d: %v, %g passes, want %d sources and %g to %g", step, th.from, th.pass, tc.from, tc.least, tc.most)
		}
	}
}

// A source floods by what it sends in a time, whether or not all of it passes.
func TestWhoFloods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		thinned, other := flooder()
		u := &Queries{thin: thinning{pass: 1.0 / 16, from: []netip.Addr{thinned}}}
		for _, tc := range []struct {
			source netip.Addr
			came   int32
			after  time.Duration
			want   bool
		}{
			{other, floodsWith - 1, beginWindow, false},
			{other, floodsWith, beginWindow, true},
			{other, floodsWith, beginWindow / 2, true},
			{other, floodsWith, 2 * beginWindow, false}, // 1,000 a second
			{other, 2 * floodsWith, 2 * beginWindow, true},
			{thinned, 0, beginWindow, false},
			{thinned, floodsWith / 16, beginWindow, false},
			{thinned, floodsWith/16 + 1, beginWindow, true},
		} {
			u.nextWindow()
			u.came[slotOf(tc.source)].Add(tc.came)
			time.Sleep(tc.after)
			if got := u.floods(tc.source); got != tc.want {
				t.Errorf("%d came from %s in %s: floods is %t", tc.came, tc.source, tc.after, got)
			}
		}
	})
}

// A source that no longer floods passes whole after some time, though another one goes on, and
// no more are thinned out than the kernel takes.
func TestWhoNoLongerFloodsIsNotThinned(t *testing.T) {
	greedy, once := flooder()
	var th thinning
	th.next(window{late: true, floods: []netip.Addr{greedy, once}})
	for range idleWindows + 1 {
		th.next(window{late: true, floods: []netip.Addr{greedy}})
	}
	if !slices.Equal(th.from, []netip.Addr{greedy}) || th.pass > leastPass {
		t.Errorf("%v, %g passes", th.from, th.pass)
	}
	for range 2 * sockets.MaxThinned {
		once = once.Next()
		th.next(window{late: true, floods: []netip.Addr{greedy, once}})
	}
	if len(th.from) != sockets.MaxThinned || len(th.idle) != len(th.from) {
		t.Errorf("%d sources, %d", len(th.from), len(th.idle))
	}
}

// thinned runs watch while two clients ask and goroutines seem to run late or packets are
// lost, and returns of whom the kernel drops packets in the end.
func thinned(t *testing.T, before func(u *Queries), during func(u *Queries)) (from []netip.Addr) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		u := &Queries{Offenders: fairness.Offenders{Log: silent{}}, Overflow: func() uint64 { return 7 }}
		u.limit.source = func() cgroup.CPU { return cgroup.CPU{} }
		var last atomic.Pointer[[]netip.Addr] // watch may go on while it is read
		last.Store(new([]netip.Addr))
		u.Thin = func(now []netip.Addr, _ float64) { last.Store(new(slices.Clone(now))) }
		before(u)
		greedy, other := flooder()
		for range 2 * clientHere {
			u.Take(greedy) // watch runs
		}
		u.Take(other)
		u.Take(greedy)
		time.Sleep(beginWindow + latePause) // now it is known what was lost before
		during(u)
		time.Sleep(2 * beginWindow)
		synctest.Wait()
		from = *last.Load()
		for range 2*clientHere + 1 {
			u.Done(greedy)
		}
		u.Done(other)
		time.Sleep(time.Minute)
		synctest.Wait()
		if end := *last.Load(); len(end) > 0 {
			t.Errorf("in the end %v are thinned out", end)
		}
	})
	return from
}

// flood has a source send and lose what makes it flood.
func flood(u *Queries, source netip.Addr) {
	u.came[slotOf(source)].Add(floodsWith)
	for range floodsAt {
		u.Offenders.Lost(source)
	}
}

// losePackets has packets lost in each window.
func losePackets(u *Queries) {
	var lost atomic.Uint64
	u.Overflow = func() uint64 { return lost.Add(floodsAt) }
}

// Queries that a client lost before are no flood, nor are packets that were lost before a
// reason to thin out.
func TestOldLossesAreNoFlood(t *testing.T) {
	_, other := flooder()
	lose := func(u *Queries) { flood(u, other) }
	before := func(u *Queries) {
		losePackets(u)
		lose(u)
	}
	if from := thinned(t, before, func(*Queries) {}); len(from) > 0 {
		t.Errorf("%v are thinned out for what they lost before", from)
	}
	if from := thinned(t, func(*Queries) {}, lose); len(from) > 0 {
		t.Errorf("%v are thinned out for packets that were lost before", from)
	}
}

// Connections that were closed are no flood of queries: to drop packets over UDP would not help.
func TestClosedConnectionsAreNoFlood(t *testing.T) {
	_, other := flooder()
	if from := thinned(t, losePackets, func(u *Queries) {
		for range 2 * floodsAt {
			u.Closed(other)
		}
		if n := u.ClosedConnections(); n != 2*floodsAt {
			t.Errorf("%d connections", n)
		}
	}); len(from) > 0 {
		t.Errorf("%v are thinned out", from)
	}
}

// A client that floods need not lose a query before the kernel drops some: packets of others are
// lost in the buffers.
func TestAFloodIsMetBeforeItLoses(t *testing.T) {
	_, other := flooder()
	var u *Queries
	if from := thinned(t, func(queries *Queries) {
		u = queries
		losePackets(u)
	}, func(u *Queries) {
		const queries = 2 * floodsWith
		for range queries {
			u.Take(other)
		}
		time.AfterFunc(4*beginWindow, func() {
			for range queries {
				u.Done(other)
			}
		})
	}); !slices.Equal(from, []netip.Addr{other}) {
		t.Errorf("%v are thinned out", from)
	}
	if n := u.Dropped(); n > 0 || len(u.Offenders.Top(1)) > 0 {
		t.Errorf("%d queries were dropped, offenders are %v", n, u.Offenders.Top(1))
	}
}

// When a CPU limit is used up, the kernel drops nothing any more at once.
func TestNobodyIsThinnedWhileThrottled(t *testing.T) {
	_, other := flooder()
	floods := func(u *Queries) { flood(u, other) }
	if from := thinned(t, losePackets, floods); len(from) == 0 {
		t.Fatal("nobody is thinned out")
	}
	if from := thinned(t, losePackets, func(u *Queries) {
		flood(u, other)
		time.Sleep(2 * beginWindow)
		u.limit.at.Store(time.Now().UnixNano())
	}); len(from) > 0 {
		t.Errorf("%v are thinned out", from)
	}
}

// silent is a log that discards everything.
type silent struct{}

func (silent) Debugf(string, ...any)   {}
func (silent) Infof(string, ...any)    {}
func (silent) Warningf(string, ...any) {}
func (silent) Errorf(string, ...any)   {}
