package fairness

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	flooder  = netip.MustParseAddr("10.244.0.1")
	quietOne = netip.MustParseAddr("10.244.0.2")
)

// upstream answers each query after a time.
type upstream struct {
	misses *Misses
	takes  time.Duration

	running sync.WaitGroup
	mu      sync.Mutex
	results map[netip.Addr]*outcome
}

// outcome is what became of the queries of a source.
type outcome struct {
	answered, shed, failed int
	longest                time.Duration
}

func (u *upstream) ask(from netip.Addr) {
	u.running.Go(func() {
		began := time.Now()
		_, err := u.misses.Do(context.Background(), from, false, func(context.Context) (int, error) {
			time.Sleep(u.takes)
			return 0, nil
		})
		u.mu.Lock()
		defer u.mu.Unlock()
		r := u.of(from)
		var shed *Shed
		switch {
		case err == nil:
			r.answered++
			r.longest = max(r.longest, time.Since(began))
		case errors.As(err, &shed):
			r.shed++
		default:
			r.failed++
		}
	})
}

func (u *upstream) of(from netip.Addr) *outcome {
	if u.results == nil {
		u.results = map[netip.Addr]*outcome{}
	}
	if u.results[from] == nil {
		u.results[from] = &outcome{}
	}
	return u.results[from]
}

// load asks at a rate for some time.
func (u *upstream) load(from netip.Addr, rate int, last time.Duration) {
	u.running.Go(func() {
		for range int(last.Seconds() * float64(rate)) {
			u.ask(from)
			time.Sleep(time.Second / time.Duration(rate))
		}
	})
}

// One floods, the other one asks 50 times a second: it loses nothing and hardly waits.
func TestAFloodIsItsSourcesProblem(t *testing.T) {
	for _, tc := range []struct {
		name  string
		limit int
		takes time.Duration
	}{
		{"fast upstream", 64, 5 * time.Millisecond},
		{"slow upstream", 1000, 200 * time.Millisecond},
		{"small limit", 4, 5 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := &upstream{misses: New(tc.limit), takes: tc.takes}
				u.load(flooder, 20_000, 2*time.Second)
				u.load(quietOne, 50, 2*time.Second)
				u.running.Wait()
				other, greedy := u.of(quietOne), u.of(flooder)
				if other.shed+other.failed > 0 || other.longest > 2*tc.takes {
					t.Errorf("the other client: %+v", *other)
				}
				if greedy.shed == 0 || greedy.answered == 0 {
					t.Errorf("the flooding client: %+v", *greedy)
				}
				if f := u.misses.Figures(); f.UnderWay+f.Waiting+f.Sources > 0 || f.Shed != uint64(greedy.shed) {
					t.Errorf("afterwards %+v", f)
				}
			})
		})
	}
}

// A source alone may have all but the reserve.
func TestASourceAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 80
		u := &upstream{misses: New(limit), takes: time.Second}
		for range limit {
			u.ask(flooder)
		}
		synctest.Wait()
		if f := u.misses.Figures(); f.UnderWay != limit-limit/reservePart || f.Waiting != limit/reservePart {
			t.Errorf("%+v", f)
		}
		u.running.Wait()
		if r := u.of(flooder); r.answered != limit {
			t.Errorf("%+v", *r)
		}
	})
}

// While the upstream is dead for one client, its queries give way to those of another one.
func TestGivingWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 80
		u := &upstream{misses: New(limit), takes: 10 * time.Second}
		ctx, cancel := context.WithCancel(t.Context())
		gaveWay := make(chan struct{}, limit)
		for range limit {
			u.running.Go(func() {
				_, err := u.misses.Do(ctx, flooder, false, func(ctx context.Context) (int, error) {
					<-ctx.Done()
					time.Sleep(time.Second / 2) // the plugins below notice it late
					return 0, ctx.Err()
				})
				var shed *Shed
				if errors.As(err, &shed) && shed.Source == flooder {
					gaveWay <- struct{}{}
				}
			})
		}
		synctest.Wait()
		for range limit / 2 {
			u.ask(quietOne)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		u.misses.mu.Lock()
		has := u.misses.sources[quietOne].underWay()
		u.misses.mu.Unlock()
		if want := limit/2 - limit/reservePart; has != limit/2 || len(gaveWay) != want {
			t.Errorf("after a second the other client has %d under way, want %d, and %d gave way, want %d", has, limit/2, len(gaveWay), want)
		}
		cancel()
		u.running.Wait()
		if r := u.of(quietOne); r.answered != limit/2 {
			t.Errorf("the other client: %+v", *r)
		}
	})
}

// The oldest query that waits gives way, and the newest ones stay.
func TestTheOldestGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(2)
		var mu sync.Mutex
		var shed []int
		release := make(chan struct{})
		var running sync.WaitGroup
		for i := range mostWaiting + 4 {
			running.Go(func() {
				_, err := m.Do(t.Context(), flooder, false, func(context.Context) (int, error) {
					<-release
					return 0, nil
				})
				if err != nil {
					mu.Lock()
					shed = append(shed, i)
					mu.Unlock()
				}
			})
			synctest.Wait()
		}
		close(release)
		running.Wait()
		// One is under way, and leastWaiting wait.
		want := mostWaiting + 4 - 1 - leastWaiting
		if len(shed) != want || shed[0] != 1 || shed[want-1] != want {
			t.Errorf("%d gave way, want 1 to %d: %v", len(shed), want, shed)
		}
	})
}

// Queries in turn wait, however many they are: their clients would ask again at once. One that
// is not in turn has another one give way that is not.
func TestQueriesInTurnWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(2)
		var shed, inTurn atomic.Int32
		release := make(chan struct{})
		var running sync.WaitGroup
		ask := func(turn bool) {
			running.Go(func() {
				_, err := m.Do(t.Context(), flooder, turn, func(context.Context) (int, error) {
					<-release
					return 0, nil
				})
				if err != nil {
					shed.Add(1)
					if turn {
						inTurn.Add(1)
					}
				}
			})
			synctest.Wait()
		}
		for range 2 * mostWaiting {
			ask(true)
		}
		if n := shed.Load(); n > 0 {
			t.Errorf("%d gave way", n)
		}
		for range leastWaiting {
			ask(false)
		}
		if n := shed.Load(); n > 0 {
			t.Errorf("%d gave way for some that are not in turn", n)
		}
		if ask(false); shed.Load() != 1 || inTurn.Load() > 0 {
			t.Errorf("%d gave way for one more, %d of them in turn, want 1 that is not", shed.Load(), inTurn.Load())
		}
		close(release)
		running.Wait()
	})
}

// A query whose client has gone frees its place.
func TestAClientThatGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(2)
		hold := make(chan struct{})
		var running sync.WaitGroup
		running.Go(func() {
			_, _ = m.Do(t.Context(), flooder, false, func(context.Context) (int, error) { <-hold; return 0, nil })
		})
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		var err error
		running.Go(func() {
			_, err = m.Do(ctx, flooder, false, func(context.Context) (int, error) { t.Error("it was asked"); return 0, nil })
		})
		synctest.Wait()
		cancel()
		synctest.Wait()
		if f := m.Figures(); !errors.Is(err, context.Canceled) || f.Waiting != 0 {
			t.Errorf("%v, %+v", err, f)
		}
		_, late := m.Do(t.Context(), flooder, false, func(context.Context) (int, error) { t.Error("it was asked"); return 0, nil })
		var shed *Shed
		if !errors.As(late, &shed) {
			t.Errorf("a query that waited for too long: %v", late)
		}
		close(hold)
		running.Wait()
	})
}

// Over many connections a client asks as fast as it is answered. While goroutines run late only
// a rate bounds it, and a client with few connections does not wait.
func TestPaceBoundsTheRateOfManyConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(1000)
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		var asked, askedFew atomic.Int32
		ask := func(from netip.Addr, count *atomic.Int32) {
			for ctx.Err() == nil {
				_, err := m.Do(ctx, from, true, func(context.Context) (int, error) {
					time.Sleep(time.Millisecond)
					return 0, nil
				})
				if err == nil {
					count.Add(1)
				} else if ctx.Err() == nil {
					t.Error(err)
				}
			}
		}
		for range 8 * manyTurns {
			running.Go(func() { ask(flooder, &asked) })
		}
		running.Go(func() { ask(quietOne, &askedFew) })
		in := func(last time.Duration, late bool) (many, few int) {
			many, few = int(asked.Load()), int(askedFew.Load())
			for range last / (5 * time.Millisecond) {
				m.Pace(time.Now(), late)
				time.Sleep(5 * time.Millisecond)
			}
			return int(asked.Load()) - many, int(askedFew.Load()) - few
		}
		in(time.Second, true)
		if many, few := in(time.Second, true); many < 700 || many > 900 || few < 950 {
			t.Errorf("late: %d in a second over many connections and %d over one, want about 800 and 1000", many, few)
		}
		in(3*time.Second, false)
		if many, _ := in(time.Second, false); many < 1600 {
			t.Errorf("some seconds later: %d in a second", many)
		}
		m.EndPace()
		before := asked.Load()
		time.Sleep(time.Second)
		if many := asked.Load() - before; many < 100_000 {
			t.Errorf("in the end: %d in a second", many)
		}
		cancel()
		running.Wait()
		if f := m.Figures(); f.UnderWay+f.Waiting+f.Sources > 0 {
			t.Errorf("afterwards %+v", f)
		}
	})
}

// Clients with many connections take turns: none gets ahead of the others by the end of its turn.
func TestManyConnectionsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(1000)
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		var answered [6]atomic.Int32
		for i := range answered {
			for range 8 * manyTurns {
				running.Go(func() {
					for ctx.Err() == nil {
						_, err := m.Do(ctx, netip.AddrFrom4([4]byte{10, 244, 1, byte(i)}), true, func(context.Context) (int, error) {
							time.Sleep(time.Millisecond)
							return 0, nil
						})
						if err == nil {
							answered[i].Add(1)
						}
					}
				})
			}
		}
		var before [len(answered)]int32
		for call := range 1200 {
			if call == 200 { // the pace is the lowest one
				for i := range answered {
					before[i] = answered[i].Load()
				}
			}
			m.Pace(time.Now(), true)
			time.Sleep(5 * time.Millisecond)
		}
		for i := range answered {
			if n := answered[i].Load() - before[i]; n < 600 || n > 740 {
				t.Errorf("client %d: %d queries in 5 seconds, want about 670", i, n)
			}
		}
		cancel()
		running.Wait()
	})
}

// Of clients that share an address one may have many connections. It does not hold up the queries
// of the others over UDP.
func TestManyConnectionsHoldUpNoUDP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &upstream{misses: New(1000), takes: time.Millisecond}
		ctx, cancel := context.WithCancel(context.Background())
		for range 8 * manyTurns {
			u.running.Go(func() {
				for ctx.Err() == nil {
					_, err := u.misses.Do(ctx, flooder, true, func(context.Context) (int, error) {
						time.Sleep(u.takes)
						return 0, nil
					})
					if err != nil && ctx.Err() == nil {
						t.Error(err)
					}
				}
			})
		}
		u.running.Go(func() { // another source, so that there are several
			for ctx.Err() == nil {
				u.ask(quietOne)
				time.Sleep(5 * time.Millisecond)
			}
		})
		pace := func() {
			for range 200 {
				u.misses.Pace(time.Now(), true)
				time.Sleep(5 * time.Millisecond)
			}
		}
		pace()
		u.load(flooder, 100, time.Second)
		pace()
		u.mu.Lock()
		if r := u.of(flooder); r.answered < 95 || r.shed+r.failed > 0 || r.longest > 20*time.Millisecond {
			t.Errorf("over UDP: %+v", *r)
		}
		u.mu.Unlock()
		u.misses.EndPace()
		cancel()
		u.running.Wait()
	})
}

// Where all ask for what is not cached, each goes on with some queries while goroutines run late.
func TestPaceLeavesEachSourceSome(t *testing.T) {
	for _, tc := range []struct{ limit, want int }{{1000, 6 * pacedShare}, {48, 48}, {2, 2}} {
		synctest.Test(t, func(t *testing.T) {
			u := &upstream{misses: New(tc.limit), takes: 100 * time.Millisecond}
			for i := range 6 {
				u.load(netip.AddrFrom4([4]byte{10, 244, 1, byte(i)}), 1000, 4*time.Second)
			}
			time.Sleep(time.Second)
			for range 20 {
				u.misses.Pace(time.Now(), true)
				time.Sleep(paceTime)
			}
			if n := u.misses.UnderWay(); n != tc.want {
				t.Errorf("limit %d: %d are under way, want %d", tc.limit, n, tc.want)
			}
			u.running.Wait()
		})
	}
}

// While goroutines run late, a source that floods has fewer under way, and a quiet one is
// not held up. It ends when they run in time.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 1000
		u := &upstream{misses: New(limit), takes: 20 * time.Millisecond}
		u.load(flooder, 20_000, 4*time.Second)
		u.load(quietOne, 50, 4*time.Second)
		time.Sleep(time.Second)
		before := u.misses.UnderWay()
		for range 20 {
			u.misses.Pace(time.Now(), true)
			time.Sleep(paceTime)
		}
		if n := u.misses.UnderWay(); before < 300 || n > pacedShare+2 {
			t.Errorf("%d are under way, %d before", n, before)
		}
		for range 100 {
			u.misses.Pace(time.Now(), false)
			time.Sleep(paceTime)
		}
		u.running.Wait()
		if r := u.of(quietOne); r.shed+r.failed > 0 || r.longest > u.takes {
			t.Errorf("the other client: %+v", *r)
		}
		if b := u.misses.Figures().Limit; b < 4*leastPace {
			t.Errorf("the limit is %d after 10 seconds", b)
		}
		u.misses.EndPace()
		if b := u.misses.Figures().Limit; b != limit {
			t.Errorf("the limit is %d, want %d", b, limit)
		}
	})
}

// Many addresses, as of a client that forges them, take bounded memory and one place.
func TestManySources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &upstream{misses: New(1000), takes: time.Second}
		a := netip.MustParseAddr("10.0.0.0")
		for range 3 * maxSources {
			a = a.Next()
			u.ask(a)
		}
		synctest.Wait()
		if f := u.misses.Figures(); f.Sources > maxSources+1 || f.UnderWay > 1000 || f.Waiting > maxSources*leastWaiting {
			t.Errorf("%+v", f)
		}
		u.running.Wait()
		if f := u.misses.Figures(); f.Sources+f.UnderWay+f.Waiting > 0 {
			t.Errorf("afterwards %+v", f)
		}
	})
}

// A panic frees the place.
func TestPanic(t *testing.T) {
	m := New(2)
	func() {
		defer func() { _ = recover() }()
		_, _ = m.Do(t.Context(), flooder, false, func(context.Context) (int, error) { panic("a plugin") })
	}()
	if f := m.Figures(); f.UnderWay+f.Sources > 0 {
		t.Errorf("%+v", f)
	}
}

func BenchmarkDo(b *testing.B) {
	for _, sources := range []int{1, 100} {
		b.Run(fmt.Sprint(sources, " sources"), func(b *testing.B) {
			m := New(1000)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				a := netip.MustParseAddr("10.0.0.0")
				for i := 0; pb.Next(); i++ {
					if a = a.Next(); i%sources == 0 {
						a = netip.MustParseAddr("10.0.0.0")
					}
					_, _ = m.Do(b.Context(), a, false, func(context.Context) (int, error) { return 0, nil })
				}
			})
		})
	}
}
