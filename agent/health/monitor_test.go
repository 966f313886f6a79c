package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testport"
)

func TestLostUpstreams(t *testing.T) {
	t.Setenv("OTHER_SERVICE_HOST", "10.96.0.7")
	const upstream, second, named, elsewhere = "10.96.0.99:53", "10.96.0.98:53", "10.96.0.7:53", "192.0.2.1:53"
	for _, tc := range []struct {
		name          string
		seen, there   string // in kube-proxy's rules before, and now
		addrs         string
		service       bool
		asks, wantOut bool
	}{
		{name: "a Service that is there", there: upstream, addrs: upstream, asks: true},
		{name: "that was there", seen: upstream, addrs: upstream, asks: true, wantOut: true},
		{name: "that the environment names", addrs: named, asks: true, wantOut: true},
		{name: "that is known to be one", addrs: upstream, service: true, asks: true, wantOut: true},
		{name: "that has no address yet", service: true, asks: true, wantOut: true},
		{name: "no Service", addrs: elsewhere},
		{name: "one of two is there", seen: upstream + " " + second, there: second, addrs: upstream + " " + second, asks: true},
		{name: "one of two is no Service", seen: upstream, addrs: upstream + " " + elsewhere, asks: true},
		{name: "both are gone", seen: upstream + " " + second, addrs: upstream + " " + second, asks: true, wantOut: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var m Monitor
			g := Group{Service: tc.service}
			for _, a := range strings.Fields(tc.addrs) {
				g.Addrs = append(g.Addrs, netip.MustParseAddrPort(a))
			}
			rules := tc.seen
			hasEndpoints := func(a netip.AddrPort) (bool, error) {
				return slices.Contains(strings.Fields(rules), a.String()), nil
			}
			if tc.seen != "" {
				if _, lost, err := m.lost(g, hasEndpoints); lost || err != nil {
					t.Fatalf("lost before: %v %v", lost, err)
				}
			}
			rules = tc.there
			asks, lost, err := m.lost(g, hasEndpoints)
			if asks != tc.asks || lost != tc.wantOut || err != nil {
				t.Errorf("asks %v, lost %v, %v, want %v %v", asks, lost, err, tc.asks, tc.wantOut)
			}
			unreadable := errors.New("unreadable")
			if _, lost, err := m.lost(g, func(netip.AddrPort) (bool, error) { return false, unreadable }); len(g.Addrs) > 0 && (lost || !errors.Is(err, unreadable)) {
				t.Errorf("with rules that cannot be read: lost %v, %v", lost, err)
			}
		})
	}
}

// clusterDNS answers like kube-dns, over UDP with truncated responses if truncate is set.
func clusterDNS(t *testing.T, truncate bool) netip.AddrPort {
	t.Helper()
	listener, conn := testport.Both(t, net.ListenConfig{}, "127.0.0.1")
	handler := func(overTCP bool) dns.Handler {
		return dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
			m := new(dns.Msg).SetReply(r)
			if m.Truncated = truncate && !overTCP; !m.Truncated {
				m.Answer = []dns.RR{test.A(r.Question[0].Name + " 30 IN A 192.0.2.80")}
			}
			_ = w.WriteMsg(m)
		})
	}
	for _, s := range []*dns.Server{{PacketConn: conn, Handler: handler(false)}, {Listener: listener, Handler: handler(true)}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return netip.MustParseAddrPort(listener.Addr().String())
}

// checks replaces the goroutine that checks the rules.
func checks(t *testing.T, m *Monitor, check func()) {
	m.wake = make(chan struct{}, 1)
	wake := m.wake
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range wake {
			check()
			m.mu.Lock()
			for _, w := range m.waiting {
				close(w)
			}
			m.waiting = nil
			m.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		m.mu.Lock()
		m.wake = nil
		m.mu.Unlock()
		close(wake)
		<-done
	})
}

func TestMissesOfALostService(t *testing.T) {
	broken := errors.New("dial tcp 10.96.0.99:53: i/o timeout")
	block, other := new(stubBlock), new(stubBlock)
	for _, tc := range []struct {
		name     string
		before   bool // it is known before the miss arrives
		onCheck  bool // or a check finds out
		of       Block
		tcp      bool
		truncate bool
		next     func(ctx context.Context, gone func()) error
		answered bool
	}{
		{name: "known before", before: true, of: block, answered: true,
			next: func(context.Context, func()) error { t.Error("the upstream is asked"); return broken }},
		{name: "known before, over TCP with an answer too long for UDP", before: true, of: block, tcp: true, truncate: true, answered: true,
			next: func(context.Context, func()) error { return broken }},
		{name: "found out while the upstream is asked", of: block, answered: true,
			next: func(ctx context.Context, gone func()) error {
				gone()
				<-ctx.Done()
				return broken
			}},
		{name: "found out when the upstream has refused", onCheck: true, of: block, answered: true,
			next: func(context.Context, func()) error { return broken }},
		{name: "another block's", of: other,
			next: func(ctx context.Context, gone func()) error {
				gone()
				return errors.Join(broken, ctx.Err())
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			service := clusterDNS(t, tc.truncate)
			var m Monitor
			m.publish(&state{})
			gone := func() {
				m.publish(&state{
					blocks:   map[Block]bool{tc.of: true},
					services: map[netip.Addr]netip.AddrPort{netip.MustParseAddr("127.0.0.1"): service},
				})
			}
			if tc.before {
				gone()
			}
			checks(t, &m, func() {
				if tc.onCheck {
					gone()
				}
			})
			w := dnstest.NewRecorder(&test.ResponseWriter{RemoteIP: "10.244.0.2", TCP: tc.tcp})
			query := new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA)
			next := func(ctx context.Context, _ dns.ResponseWriter, _ *dns.Msg) (int, error) {
				return dns.RcodeServerFailure, tc.next(ctx, gone)
			}
			rcode, err := m.serveMiss(t.Context(), Query{Block: block, W: w, R: query, TCP: tc.tcp, Pass: next})
			if !tc.answered {
				if rcode != dns.RcodeServerFailure || !errors.Is(err, broken) || errors.Is(err, context.Canceled) || w.Msg != nil {
					t.Errorf("%d %v, answer %v", rcode, err, w.Msg)
				}
				return
			}
			if rcode != dns.RcodeSuccess || err != nil || w.Msg == nil || w.Msg.Id != query.Id || len(w.Msg.Answer) != 1 {
				t.Errorf("%d %v, answer %v", rcode, err, w.Msg)
			}
		})
	}
}

// One check serves all misses that wait. Waiting is bounded in number and in time.
func TestFailedMissesWaitForACheck(t *testing.T) {
	broken := errors.New("read udp 10.96.0.99:53: connection refused")
	for _, tc := range []struct {
		name   string
		rcode  int
		rest   time.Duration // until the next check
		took   time.Duration // the last check
		wait   int           // how many of 200 failed misses wait
		checks bool
	}{
		{"the upstream refuses at once", dns.RcodeServerFailure, 0, time.Millisecond, maxWaiting, true},
		{"a check is due in a moment", dns.RcodeServerFailure, 100 * time.Millisecond, 2 * time.Millisecond, maxWaiting, true},
		{"large rules delay checks", dns.RcodeServerFailure, 5 * time.Second, 100 * time.Millisecond, 0, true},
		{"a check takes seconds", dns.RcodeServerFailure, 0, 2 * time.Second, 0, true},
		{"refused by a plugin, as by max_concurrent", dns.RcodeRefused, 0, time.Millisecond, 0, false},
		{"malformed", dns.RcodeFormatError, 0, time.Millisecond, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var m Monitor
				m.publish(&state{})
				m.wake = make(chan struct{}, 1)
				m.rest, m.took = time.Now().Add(tc.rest), tc.took
				next := func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) { return tc.rcode, broken }
				began := time.Now()
				var waited atomic.Int64
				var all sync.WaitGroup
				for i := range 200 {
					all.Go(func() {
						w := &test.ResponseWriter{RemoteIP: fmt.Sprintf("10.244.0.%d", i%8)}
						query := new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA)
						if rcode, err := m.serveMiss(t.Context(), Query{Block: new(stubBlock), W: w, R: query, Pass: next}); rcode != tc.rcode || !errors.Is(err, broken) {
							t.Errorf("%d %v", rcode, err)
						}
						if time.Since(began) > 0 {
							waited.Add(1)
						}
					})
				}
				synctest.Wait()
				if len(m.wake) > 0 != tc.checks {
					t.Errorf("checks: %t", !tc.checks)
				}
				time.Sleep(tc.rest + time.Millisecond)
				m.releaseWaiting() // the check has ended
				all.Wait()
				time.Sleep(500 * time.Millisecond)
				if got := int(waited.Load()); got != tc.wait {
					t.Errorf("%d waited, want %d", got, tc.wait)
				}
				if time.Since(began) > tc.rest+625*time.Millisecond {
					t.Errorf("it took %s", time.Since(began))
				}
			})
		})
	}
}

// slowRules wait for somebody else's change when they take the queries back.
type slowRules struct{}

func (slowRules) FailOver(error) error { return nil }
func (slowRules) FailBack() error      { time.Sleep(time.Second); return nil }

// The next check waits in proportion to what the last one took, not to what its
// consequences did.
func TestAChangeOfRulesPutsOffNoCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		checks := 0
		config := &Config{Blocks: func() []Block { checks++; return nil }}
		m := Monitor{over: true}
		wake := make(chan struct{}, 1)
		go m.watch(t.Context(), wake, config, slowRules{})
		wake <- struct{}{}
		synctest.Wait()
		wake <- struct{}{} // announced meanwhile
		time.Sleep(time.Second + time.Millisecond)
		synctest.Wait()
		if checks != 2 {
			t.Errorf("%d checks when the rules had changed, want 2", checks)
		}
	})
}

// While the monitor is stopped, misses do not wait for ever.
func TestWaitsForACheckEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Monitor
		began := time.Now()
		m.awaitCheck(t.Context())
		if took := time.Since(began); took != checkPatience {
			t.Errorf("waited for %s", took)
		}
	})
}

// stubBlock is a server block without upstreams.
type stubBlock struct{ label string }

func (*stubBlock) Upstreams() []Group { return nil }
func (b *stubBlock) Label() string    { return b.label }
func (*stubBlock) Pass(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	return 0, w.WriteMsg(new(dns.Msg).SetReply(r))
}
