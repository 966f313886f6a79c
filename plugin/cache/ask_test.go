package cache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/coredns/plugin/metadata"
	"github.com/miekg/dns"
)

// boot is an upstream that gets no packets for some time. Queries sent meanwhile never
// arrive: conntrack has their connections from before kube-proxy installed its rules.
type boot struct {
	upstream
	backAt time.Time
}

var (
	errTimeout = errors.New("i/o timeout")
	errRefused = errors.New("connection refused")
)

// pendingDial is a dial of forward over TCP or TLS that does not end.
func (*boot) pendingDial(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-time.After(30 * time.Second):
	}
	return errTimeout
}

// lateDial is a dial whose handshake the kernel repeats: after one second, two and four.
func (b *boot) lateDial(ctx context.Context) error {
	for wait := time.Second; ; wait *= 2 {
		select {
		case <-ctx.Done():
			return errTimeout
		case <-time.After(wait):
		}
		if !time.Now().Before(b.backAt) {
			return nil
		}
	}
}

// pendingRead is a UDP query of forward, which ignores the context.
func (*boot) pendingRead(context.Context) error {
	time.Sleep(2 * time.Second)
	return errTimeout
}

func (*boot) refused(context.Context) error { return errRefused }

// slowlyRefused is a dial that fails after a while, as by the ICMP message of a router whose
// neighbour does not answer.
func (*boot) slowlyRefused(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-time.After(3 * time.Second):
	}
	return errRefused
}

// TestBootBesideLocalAnswers: while the upstream does not respond, the process answers some
// names itself. These answers must not make it ask the others anew: a query is asked only a
// few times, and the upstream has not recovered yet.
func TestBootBesideLocalAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &boot{backAt: time.Now().Add(4 * time.Second)}
		asked := 0
		answer := replies(nil, anA).f
		up.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			if strings.HasPrefix(r.Question[0].Name, "local") {
				return answer(ctx, w, r)
			}
			up.mu.Lock()
			asked++
			up.mu.Unlock()
			metadata.SetValueFunc(ctx, "forward/upstream", func() string { return "192.0.2.53:53" })
			if time.Now().Before(up.backAt) {
				return dns.RcodeServerFailure, up.pendingDial(ctx)
			}
			return answer(ctx, w, r)
		}
		c := newCache(t, up, func(c *Cache) { c.countsAll = false })
		var clients sync.WaitGroup
		w := &client{}
		clients.Go(func() { _, _ = c.ServeDNS(context.Background(), w, question("example.org.", nil)) })
		for i := range 10 {
			time.Sleep(300 * time.Millisecond)
			if _, err := c.ServeDNS(context.Background(), &client{}, question(fmt.Sprintf("local-%d.example.org.", i), nil)); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(900 * time.Millisecond)
		if asked > 2 { // the query and a probe
			t.Errorf("asked %d times while the upstream does not respond", asked)
		}
		_, _ = c.ServeDNS(context.Background(), &client{}, question("another.example.org.", nil))
		time.Sleep(200 * time.Millisecond)
		if len(w.got) != 1 || w.got[0].Rcode != dns.RcodeSuccess {
			t.Errorf("no answer although another has one: %v", w.got)
		}
		clients.Wait()
		time.Sleep(time.Minute)
	})
}

// TestCutShort: a query that is asked anew just before its time ends fails. The failure is
// not stored: the next client gets an answer.
func TestCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &boot{backAt: time.Now().Add(askTimeout - checkInterval/2)}
		answer := replies(nil, anA).f
		up.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			if time.Now().Before(up.backAt) {
				return dns.RcodeServerFailure, up.pendingDial(ctx)
			}
			if r.Question[0].Name == "slow.example.org." {
				select {
				case <-ctx.Done():
					return dns.RcodeServerFailure, errTimeout
				case <-time.After(2 * checkInterval):
				}
			}
			return answer(ctx, w, r)
		}
		c := newCache(t, up, nil)
		serve := func(name string) int {
			w := &client{}
			code, _ := c.ServeDNS(context.Background(), w, question(name, nil))
			if len(w.got) > 0 {
				code = w.got[0].Rcode
			}
			return code
		}
		var first sync.WaitGroup
		first.Go(func() {
			if code := serve("slow.example.org."); code != dns.RcodeServerFailure {
				t.Errorf("%s: it is not cut short, and the test tests nothing", dns.RcodeToString[code])
			}
		})
		time.Sleep(time.Until(up.backAt))
		serve("another.example.org.")
		first.Wait()
		if code := serve("slow.example.org."); code != dns.RcodeSuccess {
			t.Errorf("%s a moment later, from an upstream that answers", dns.RcodeToString[code])
		}
		time.Sleep(time.Minute)
	})
}

// CoreDNS's plugin loop asks for a name of its own at the start, again and again while there
// is no response. If it sees its name three times, it has found a loop. The cache must not
// ask that name anew.
func TestLoopIsAskedOnce(t *testing.T) {
	for _, tc := range []struct {
		name   string
		silent func(*boot, context.Context) error
	}{
		{"dials that are pending", (*boot).pendingDial},
		{"queries that vanish", (*boot).pendingRead},
		{"connections that are refused after a while", (*boot).slowlyRefused},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := &boot{backAt: time.Now().Add(9 * time.Second)}
				var mu sync.Mutex
				seen := 0
				answer := replies(nil, anA).f
				up.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
					if r.Question[0].Qtype == dns.TypeHINFO {
						mu.Lock()
						if seen++; seen > 2 {
							t.Errorf("seen for the third time %s before the upstream is there", time.Until(up.backAt))
						}
						mu.Unlock()
					}
					if time.Now().Before(up.backAt) {
						return dns.RcodeServerFailure, tc.silent(up, ctx)
					}
					return answer(ctx, w, r)
				}
				c := newCache(t, up, nil)
				var asked sync.WaitGroup
				for range 4 {
					m := new(dns.Msg).SetQuestion("123.456.", dns.TypeHINFO)
					asked.Go(func() { _, _ = c.ServeDNS(context.Background(), &client{}, m) })
					time.Sleep(2 * time.Second) // the client gives up, and counts anew
					mu.Lock()
					seen = 0
					mu.Unlock()
					time.Sleep(time.Second)
				}
				asked.Wait()
				time.Sleep(time.Minute)
			})
		})
	}
}
