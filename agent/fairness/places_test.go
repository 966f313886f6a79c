package fairness

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Queries that cause others, as for the target of an alias, wait for no place that they have
// themselves.
func TestAQueryThatCausesAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &upstream{misses: New(16)}
		for range 16 {
			u.running.Go(func() {
				began := time.Now()
				_, err := u.misses.Do(t.Context(), flooder, false, func(ctx context.Context) (int, error) {
					time.Sleep(5 * time.Millisecond)
					return u.misses.Do(ctx, flooder, false, func(context.Context) (int, error) {
						time.Sleep(5 * time.Millisecond)
						return 0, nil
					})
				})
				if took := time.Since(began); err != nil || took > time.Second {
					t.Errorf("%v after %v", err, took)
				}
			})
		}
		u.running.Wait()
		if f := u.misses.Figures(); f.UnderWay+f.Waiting+f.Sources > 0 || f.Shed > 0 {
			t.Errorf("afterwards %+v", f)
		}
	})
}

// A query that waits for a place until its deadline gives way, and is counted. One that is
// cancelled meanwhile has not begun.
func TestTheEndOfAWait(t *testing.T) {
	for _, tc := range []struct {
		name  string
		until time.Duration // 0: it is cancelled
		shed  bool
	}{
		{"before others lose patience", time.Second, true},
		{"at the same time", patience, true},
		{"never", time.Hour, true},
		{"cancelled", 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, counted := New(2), 0
				m.OnShed = func(netip.Addr) { counted++ }
				hold := make(chan struct{})
				var running sync.WaitGroup
				running.Go(func() {
					_, _ = m.Do(t.Context(), flooder, false, func(context.Context) (int, error) { <-hold; return 0, nil })
				})
				synctest.Wait()
				ctx, cancel := context.WithTimeout(t.Context(), tc.until)
				if tc.until == 0 {
					ctx, cancel = context.WithCancel(t.Context())
					time.AfterFunc(time.Second, cancel)
				}
				defer cancel()
				_, err := m.Do(ctx, flooder, false, func(context.Context) (int, error) { t.Error("it was asked"); return 0, nil })
				var shed *Shed
				var notBegun *NotBegun
				if errors.As(err, &shed) != tc.shed || errors.As(err, &notBegun) == tc.shed {
					t.Errorf("%v", err)
				}
				if f := m.Figures(); (f.Shed == 1) != tc.shed || (counted == 1) != tc.shed || f.Waiting > 0 {
					t.Errorf("%+v, counted %d", f, counted)
				}
				close(hold)
				running.Wait()
			})
		})
	}
}

// The source that has most gives way, also after one that had more has ended its queries.
func TestTheSecondLargestGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 80
		u := &upstream{misses: New(limit), takes: time.Hour}
		second := flooder.Next().Next()
		first, cancel := context.WithCancel(t.Context())
		defer cancel()
		shed := map[netip.Addr]int{}
		u.misses.OnShed = func(a netip.Addr) { shed[a]++ }
		hold := func(ctx context.Context, from netip.Addr, n int) {
			for range n {
				u.running.Go(func() {
					_, _ = u.misses.Do(ctx, from, false, func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, ctx.Err() })
				})
			}
			synctest.Wait()
		}
		all, end := context.WithCancel(t.Context())
		hold(first, flooder, 36)
		hold(all, second, 30)
		cancel() // the first has none left
		synctest.Wait()
		a := netip.MustParseAddr("10.245.0.0")
		for range 8 { // fill up, each below its share
			a = a.Next()
			hold(all, a, 6)
		}
		hold(all, a, 2)
		if f := u.misses.Figures(); f.UnderWay != limit {
			t.Fatalf("%+v", f)
		}
		hold(all, quietOne, 1)
		if f := u.misses.Figures(); shed[second] != 1 || len(shed) != 1 || f.Waiting > 0 {
			t.Errorf("gave way: %v, %+v", shed, f)
		}
		end()
		u.running.Wait()
	})
}
