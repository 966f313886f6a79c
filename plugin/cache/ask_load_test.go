//go:build load

package cache

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// TestBoot: the upstream does not respond for nine seconds. One second after it responds,
// no client gets a failure any more, and no client waits longer than the row says. The log
// stays short all the time.
func TestBoot(t *testing.T) {
	const away = 9 * time.Second
	for _, tc := range []struct {
		name   string
		silent func(*boot, context.Context) error // what becomes of a query that does not arrive
		rate   int                                // lookups a second
		waits  time.Duration
	}{
		{"dials that are pending", (*boot).pendingDial, 250, time.Second},
		{"dials that are pending, a few clients", (*boot).pendingDial, 1, probeAfter + checkInterval},
		{"queries that vanish", (*boot).pendingRead, 250, 2 * time.Second},
		{"queries that vanish, a few clients", (*boot).pendingRead, 1, 2 * time.Second},
		{"dials that come about late", (*boot).lateDial, 250, time.Second},
		{"connections that are refused", (*boot).refused, 250, time.Second},
		{"connections that are refused after a while", (*boot).slowlyRefused, 250, time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := &boot{backAt: time.Now().Add(away)}
				answer := replies(nil, anA).f
				up.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
					if time.Now().Before(up.backAt) {
						if err := tc.silent(up, ctx); err != nil {
							return dns.RcodeServerFailure, err
						}
					}
					time.Sleep(time.Millisecond)
					return answer(ctx, w, r)
				}
				c := newCache(t, up, func(c *Cache) { c.size = 8 << 20 })
				b := &booted{cache: c, backAt: up.backAt, lines: map[time.Duration]int{}}
				for i := range int(13*time.Second) * tc.rate / int(time.Second) {
					name := fmt.Sprintf("new-%d.example.org.", i)
					if i%2 == 0 {
						name = fmt.Sprintf("hot-%d.example.org.", i/2%20)
					}
					b.clients.Go(func() { b.lookup(name) })
					time.Sleep(time.Second / time.Duration(tc.rate))
				}
				b.clients.Wait()
				if len(b.failed) > 0 && slices.Max(b.failed) > time.Second {
					t.Errorf("the last failure comes %s after the upstream", slices.Max(b.failed))
				}
				if b.waited > tc.waits+10*time.Millisecond {
					t.Errorf("an answer comes %s after upstream and query", b.waited)
				}
				for second, lines := range b.lines {
					if lines > 10 {
						t.Errorf("%d lines of log in second %s", lines, second)
					}
				}
				time.Sleep(time.Minute)
			})
		})
	}
}

// booted are the clients of TestBoot.
type booted struct {
	cache   *Cache
	backAt  time.Time
	clients sync.WaitGroup

	mu     sync.Mutex
	failed []time.Duration // when, after the upstream was back
	waited time.Duration   // the longest since then
	lines  map[time.Duration]int
}

// lookup asks at most twice, as glibc does.
func (b *booted) lookup(name string) {
	for range 2 {
		sent := time.Now()
		w := &client{}
		code, err := b.cache.ServeDNS(context.Background(), w, question(name, nil))
		if len(w.got) > 0 {
			code = w.got[0].Rcode
		}
		now := time.Now()
		b.mu.Lock()
		if err != nil {
			b.lines[now.Sub(b.backAt).Truncate(time.Second)]++
		}
		if code == dns.RcodeServerFailure {
			b.failed = append(b.failed, now.Sub(b.backAt))
		} else if b.backAt.After(sent) {
			b.waited = max(b.waited, now.Sub(b.backAt))
		} else {
			b.waited = max(b.waited, now.Sub(sent))
		}
		b.mu.Unlock()
		if code != dns.RcodeServerFailure {
			return
		}
	}
}
