package cache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

const anA = www + " 300 IN A 192.0.2.1"

func TestHit(t *testing.T) {
	up := replies(func(m *dns.Msg) { m.Authoritative, m.AuthenticatedData, m.RecursionAvailable = true, true, true }, anA)
	c := newCache(t, up, nil)
	ask(t, c, question(www, nil))
	for _, tc := range []struct {
		name   string
		client func(*dns.Msg)
		ad     bool
	}{
		{"plain", func(*dns.Msg) {}, false},
		{"AD", func(m *dns.Msg) { m.AuthenticatedData = true }, true},
		{"other spelling", func(m *dns.Msg) { m.Question[0].Name = "WwW.eXample.ORG." }, false},
		{"no RD", func(m *dns.Msg) { m.RecursionDesired = false }, false},
		{"EDNS", func(m *dns.Msg) { m.SetEdns0(1232, false) }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := question(www, tc.client)
			m := ask(t, c, r)
			if m == nil || m.Id != r.Id || !m.Response || m.Question[0] != r.Question[0] || m.RecursionDesired != r.RecursionDesired ||
				!m.Authoritative || !m.RecursionAvailable || m.AuthenticatedData != tc.ad || m.Truncated {
				t.Fatalf("reply %v to %v", m, r)
			}
			if len(m.Answer) != 1 || m.Answer[0].Header().Name != r.Question[0].Name || m.Answer[0].Header().Ttl != 300 {
				t.Errorf("answer %v", m.Answer)
			}
		})
	}
	if up.count() != 1 {
		t.Errorf("%d queries upstream, want 1", up.count())
	}
}

// TestMissesOfTheirOwn has a row for each query that must not get another's
// answer.
func TestMissesOfTheirOwn(t *testing.T) {
	for _, tc := range []struct {
		name   string
		client func(*dns.Msg)
	}{
		{"other name", func(m *dns.Msg) { m.Question[0].Name = "ww.example.org." }},
		{"other type", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }},
		{"other class", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }},
		{"DO", func(m *dns.Msg) { m.SetEdns0(1232, true) }},
		{"CD", func(m *dns.Msg) { m.CheckingDisabled = true }},
		{"update", func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }},
		{"notify", func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }},
		{"client subnet", withSubnet(24)},
		{"two questions", func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			up := replies(nil, anA)
			c := newCache(t, up, nil)
			ask(t, c, question(www, nil))
			ask(t, c, question(www, tc.client))
			if up.count() != 2 {
				t.Errorf("%d queries upstream, want 2", up.count())
			}
		})
	}
}

func TestZones(t *testing.T) {
	for _, tc := range []struct {
		name, qname string
		zones       []string
		want        bool
	}{
		{"below the zone", www, []string{"example.org."}, true},
		{"the zone", "example.org.", []string{"example.org."}, true},
		{"outside", "www.example.net.", []string{"example.org."}, false},
		{"bypassed", "www.dyn.example.org.", []string{"example.org."}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			up := replies(nil)
			c := newCache(t, up, func(c *Cache) { c.Zones = tc.zones })
			c.bypass, _ = wireZones([]string{"dyn.example.org."})
			ask(t, c, question(tc.qname, nil))
			ask(t, c, question(tc.qname, nil))
			if cached := up.count() == 1; cached != tc.want {
				t.Errorf("cached: %t, want %t", cached, tc.want)
			}
		})
	}
}

func TestNotOpenPassesOn(t *testing.T) {
	up := replies(nil, anA)
	c := New()
	c.Next = up
	if m := ask(t, c, question(www, nil)); m == nil || up.count() != 1 {
		t.Error("a cache that is not open must pass queries on")
	}
}

func TestResponseWithoutMessage(t *testing.T) {
	c := newCache(t, plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, _ *dns.Msg) (int, error) {
		return dns.RcodeSuccess, w.WriteMsg(nil)
	}), nil)
	if _, err := c.ServeDNS(context.Background(), &client{}, question(www, nil)); !errors.Is(err, errNilMessage) {
		t.Errorf("error %v", err)
	}
}

// TestReplyIsPrivate changes a reply, as plugins above do.
func TestReplyIsPrivate(t *testing.T) {
	c := newCache(t, replies(nil, anA, www+" 300 IN A 192.0.2.2"), nil)
	ask(t, c, question(www, nil))
	for range 3 {
		m := ask(t, c, question(www, nil))
		if len(m.Answer) != 2 || m.Answer[0].(*dns.A).A.String() != "192.0.2.1" || m.Answer[0].Header().Ttl != 300 {
			t.Fatalf("the reply has the changes of another client: %v", m)
		}
		m.Answer[0].(*dns.A).A[3] = 99
		m.Answer[0].Header().Ttl = 1
		m.Answer[1] = nil
		m.Question[0].Name = "changed."
	}
}

func TestWildcardMetadata(t *testing.T) {
	up := &upstream{f: func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		metadata.SetValueFunc(ctx, wildcardLabel, func() string { return "*.example.org." })
		return replies(nil, anA).f(ctx, w, r)
	}}
	c := newCache(t, up, nil)
	for i := range 2 {
		ctx := metadata.ContextWithMetadata(context.Background())
		if _, err := c.ServeDNS(ctx, &client{}, question(www, nil)); err != nil {
			t.Fatal(err)
		}
		if f := metadata.ValueFunc(ctx, wildcardLabel); f == nil || f() != "*.example.org." {
			t.Errorf("query %d: no wildcard in the metadata", i)
		}
	}
	if up.count() != 1 {
		t.Errorf("%d queries upstream, want 1", up.count())
	}
}

// TestSubnets has a row for each pair of a first and a second client, and for the scope of
// the first answer. RFC 7871 section 7.3.1: an answer for all networks is for all clients.
// An answer to a query without any network is only for such queries.
func TestSubnets(t *testing.T) {
	const none, hidden, network = -1, 0, 24
	for _, tc := range []struct {
		name         string
		first, scope int // of the query, of the response
		second       int
		hit          bool
	}{
		{"scope 0, for the same network", network, 0, network, true},
		{"scope 0, for no network", network, 0, hidden, true},
		{"scope 0, without the option", network, 0, none, true},
		{"a scope, for the same network", network, 24, network, false},
		{"a scope, without the option", network, 24, none, false},
		{"no scope, for the same network", network, none, network, false},
		{"no scope, without the option", network, none, none, false},
		{"no network, again", hidden, 0, hidden, true},
		{"no network, and no option in the response", hidden, none, hidden, true},
		{"no network, and a scope in the response", hidden, 24, hidden, false},
		{"no network, then a network", hidden, 0, network, false},
		{"no network, then without the option", hidden, 0, none, false},
		{"without the option, then no network", none, none, hidden, false},
		{"without the option, then a network", none, none, network, false},
		{"scope 0 unasked, then a network", none, 0, network, true},
		{"a scope unasked", none, 24, none, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			up := replies(func(m *dns.Msg) {
				m.Extra = nil
				if tc.scope != none {
					withSubnet(24)(m)
					m.IsEdns0().Option[0].(*dns.EDNS0_SUBNET).SourceScope = uint8(tc.scope)
				}
			}, anA)
			c := newCache(t, up, nil)
			for _, source := range []int{tc.first, tc.second} {
				m := ask(t, c, question(www, func(m *dns.Msg) {
					if source != none {
						withSubnet(uint8(source))(m)
					}
				}))
				if m == nil || len(m.Answer) != 1 || m.Answer[0].Header().Ttl != 300 {
					t.Fatalf("got %v", m)
				}
			}
			if hit := up.count() == 1; hit != tc.hit {
				t.Errorf("%d queries upstream: hit %t, want %t", up.count(), hit, tc.hit)
			}
		})
	}
}

// TestRecursionDesired: an answer to a query without RD is not for queries with RD; an
// answer to a query with RD is for both.
func TestRecursionDesired(t *testing.T) {
	norec := func(m *dns.Msg) { m.RecursionDesired = false }
	up := &upstream{f: func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		if r.RecursionDesired {
			return replies(nil, anA).f(ctx, w, r)
		}
		return replies(func(m *dns.Msg) { m.Ns = []dns.RR{test.NS("org. 60 IN NS a.nic.org.")} }).f(ctx, w, r)
	}}
	c := newCache(t, up, nil)
	for _, step := range []struct {
		name    string
		edit    func(*dns.Msg)
		answers int
		calls   int
	}{
		{"without", norec, 0, 1},
		{"without again", norec, 0, 1},
		{"with", nil, 1, 2},
		{"with again", nil, 1, 2},
	} {
		if m := ask(t, c, question(www, step.edit)); m == nil || len(m.Answer) != step.answers || m.RecursionDesired != (step.edit == nil) || up.count() != step.calls {
			t.Errorf("%s: %d queries upstream, want %d; got %v", step.name, up.count(), step.calls, m)
		}
	}
}

// TestExtendedRcode: clients with EDNS get an extended RCODE unchanged. The others get
// SERVFAIL, neither the RCODE of its lower bits nor no answer.
func TestExtendedRcode(t *testing.T) {
	for _, tc := range []struct {
		name  string
		zones []string
		edit  func(*dns.Msg)
		want  int
	}{
		{"with EDNS", []string{"."}, edns(), dns.RcodeBadCookie},
		{"without", []string{"."}, nil, dns.RcodeServerFailure},
		{"with EDNS, not cached", []string{"example.net."}, edns(), dns.RcodeBadCookie},
		{"without, not cached", []string{"example.net."}, nil, dns.RcodeServerFailure},
		{"without, update", []string{"."}, func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, dns.RcodeServerFailure},
	} {
		t.Run(tc.name, func(t *testing.T) {
			up := replies(func(m *dns.Msg) { m.Rcode = dns.RcodeBadCookie })
			c := newCache(t, up, func(c *Cache) { c.Zones = tc.zones })
			for range 2 {
				r := question(www, tc.edit)
				w := &client{}
				if _, err := c.ServeDNS(context.Background(), request.NewScrubWriter(r, w), r); err != nil {
					t.Fatal(err)
				}
				if len(w.got) != 1 || w.got[0].Rcode != tc.want {
					t.Fatalf("got %v, want %s", w.got, dns.RcodeToString[tc.want])
				}
				if _, err := w.got[0].Pack(); err != nil {
					t.Errorf("the reply cannot be sent: %v", err)
				}
			}
			if up.count() != 2 {
				t.Errorf("%d queries upstream, want 2", up.count())
			}
		})
	}
}

func TestMismatchIsCounted(t *testing.T) {
	up := replies(func(m *dns.Msg) { m.Question[0].Name = "evil.example.org." }, "evil.example.org. 300 IN A 192.0.2.66")
	c := newCache(t, up, nil)
	before := testutil.ToFloat64(c.Counters("").Drops)
	ask(t, c, question(www, nil))
	ask(t, c, question(www, nil))
	if up.count() != 2 || testutil.ToFloat64(c.Counters("").Drops)-before != 2 {
		t.Errorf("%d queries upstream, %v drops; want 2 and 2", up.count(), testutil.ToFloat64(c.Counters("").Drops)-before)
	}
	if m := ask(t, c, question("evil.example.org.", nil)); m == nil || up.count() != 3 {
		t.Error("the response to one question was stored for another")
	}
}

// TestCoalesce has a thousand clients ask for one cold name at once.
func TestCoalesce(t *testing.T) {
	for _, tc := range []struct {
		name     string
		coalesce bool
		calls    int
	}{{"on", true, 1}, {"off", false, 1000}} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := replies(nil, anA)
				answer := up.f
				up.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
					time.Sleep(20 * time.Millisecond)
					return answer(ctx, w, r)
				}
				c := newCache(t, up, func(c *Cache) { c.coalesce = tc.coalesce })
				before := testutil.ToFloat64(c.Counters("").Coalesced)
				var wg sync.WaitGroup
				for i := range 1000 {
					wg.Go(func() {
						name := www
						if i%2 == 0 {
							name = "WWW.example.ORG."
						}
						r := question(name, func(m *dns.Msg) {
							m.Id = uint16(i)
							if i%3 == 0 {
								m.SetEdns0(4096, false)
							}
						})
						m := ask(t, c, r)
						if m == nil || m.Id != uint16(i) || m.Question[0].Name != name || len(m.Answer) != 1 || m.Answer[0].Header().Ttl != 300 {
							t.Errorf("client %d got %v", i, m)
						}
					})
				}
				wg.Wait()
				if up.count() != tc.calls {
					t.Errorf("%d queries upstream, want %d", up.count(), tc.calls)
				}
				if got := testutil.ToFloat64(c.Counters("").Coalesced) - before; int(got) != 1000-tc.calls {
					t.Errorf("%v queries counted as coalesced, want %d", got, 1000-tc.calls)
				}
			})
		})
	}
}

// TestCoalescedOutcomes has a row for each outcome upstream: the answer of the client that
// waits, and how many queries went upstream for both clients.
func TestCoalescedOutcomes(t *testing.T) {
	errBroken := errors.New("broken")
	for _, tc := range []struct {
		name     string
		upstream func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error)
		second   func(*dns.Msg)
		overTCP  bool
		cancel   bool // the first client goes away
		calls    int
		written  bool
		code     int
		err      error
	}{
		{name: "answer", upstream: replies(nil, anA).f, calls: 1, written: true},
		{name: "cached failure", upstream: replies(func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }).f, calls: 1, written: true},
		{name: "refused", upstream: replies(func(m *dns.Msg) { m.Rcode = dns.RcodeRefused }).f, calls: 2, written: true},
		{name: "error", upstream: func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
			return dns.RcodeServerFailure, errBroken
		},
			calls: 2, code: dns.RcodeServerFailure, err: errBroken},
		{name: "code only", upstream: func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) { return dns.RcodeRefused, nil },
			calls: 2, code: dns.RcodeRefused},
		{name: "nothing", upstream: func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) { return dns.RcodeSuccess, nil }, calls: 2},
		{name: "truncated, same transport", upstream: replies(func(m *dns.Msg) { m.Truncated = true }).f, calls: 2, written: true},
		{name: "truncated, larger buffer", upstream: replies(func(m *dns.Msg) { m.Truncated = true }).f,
			second: func(m *dns.Msg) { m.SetEdns0(4096, false) }, calls: 2, written: true},
		{name: "truncated, over TCP", upstream: replies(func(m *dns.Msg) { m.Truncated = true }).f, overTCP: true, calls: 2, written: true},
		{name: "another question", upstream: replies(func(m *dns.Msg) { m.Question[0].Name = "evil." }).f, calls: 2, written: true},
		{name: "for a subnet", upstream: replies(func(m *dns.Msg) { withSubnet(24)(m); m.IsEdns0().Option[0].(*dns.EDNS0_SUBNET).SourceScope = 24 }, anA).f, calls: 2, written: true},
		{name: "first client goes away", upstream: func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			if ctx.Err() != nil {
				return dns.RcodeServerFailure, ctx.Err()
			}
			return replies(nil, anA).f(ctx, w, r)
		}, cancel: true, calls: 2, written: true},
		{name: "bytes", upstream: func(_ context.Context, w dns.ResponseWriter, _ *dns.Msg) (int, error) {
			_, err := w.Write([]byte{1})
			return 0, err
		}, calls: 2},
		{name: "disabled zone", upstream: replies(nil, "www.off.example.org. 300 IN A 192.0.2.1").f,
			second: func(m *dns.Msg) { m.Question[0].Name = "www.off.example.org." }, calls: 2, written: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := &upstream{}
				up.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
					time.Sleep(20 * time.Millisecond)
					return tc.upstream(ctx, w, r)
				}
				c := newCache(t, up, func(c *Cache) { c.pexcept = []string{"off.example.org."} })
				r := question(www, tc.second)
				first := question(r.Question[0].Name, nil)
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				go func() { _, _ = c.ServeDNS(ctx, &client{}, first) }()
				time.Sleep(10 * time.Millisecond)
				if tc.cancel {
					cancel()
				}
				w := &client{ResponseWriter: test.ResponseWriter{TCP: tc.overTCP}}
				code, err := c.ServeDNS(context.Background(), w, r)
				if up.count() != tc.calls || len(w.got) == 1 != tc.written || code != tc.code || !errors.Is(err, tc.err) {
					t.Errorf("%d queries upstream, %d messages, code %d, error %v; want %d, %t, %d, %v", up.count(), len(w.got), code, err, tc.calls, tc.written, tc.code, tc.err)
				}
				if len(w.got) == 1 && (w.got[0].Id != r.Id || w.got[0].Truncated != (tc.name[:5] == "trunc")) {
					t.Errorf("got %v", w.got[0])
				}
			})
		})
	}
}

func TestWaiterLeavesWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := replies(nil, anA)
		answer := up.f
		up.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			time.Sleep(time.Minute)
			return answer(ctx, w, r)
		}
		c := newCache(t, up, nil)
		go func() { _, _ = c.ServeDNS(context.Background(), &client{}, question(www, nil)) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), maxPatience/2)
		defer cancel()
		start := time.Now()
		if code, err := c.ServeDNS(ctx, &client{}, question(www, nil)); code != dns.RcodeServerFailure || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != maxPatience/2 {
			t.Errorf("code %d, error %v after %v", code, err, time.Since(start))
		}
		time.Sleep(2 * time.Minute) // with a probe
	})
}

func TestPanicUpstreamFreesWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &upstream{f: func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
			time.Sleep(time.Second)
			panic("upstream")
		}}
		c := newCache(t, up, nil)
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				defer func() { _ = recover() }() // as the server does
				_, _ = c.ServeDNS(context.Background(), &client{}, question(www, nil))
			})
		}
		wg.Wait()
		noFlights(t, c)
	})
}

// TestRefreshTransport: a refresh looks to the upstream like the query that started it, and
// asks again over TCP after a truncated answer.
func TestRefreshTransport(t *testing.T) {
	for _, tc := range []struct {
		name      string
		overTCP   bool
		truncates bool
		udp, tcp  int // calls of the refresh
		fresh     bool
	}{
		{"UDP", false, false, 1, 0, true},
		{"TCP", true, false, 0, 1, true},
		{"UDP that is cut off", false, true, 1, 1, true},
	} {
		for _, mode := range []string{"prefetch", "stale", "verify"} {
			t.Run(tc.name+" "+mode, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					first := true
					up := replies(nil, anA)
					answer := up.f
					up.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
						_, overTCP := w.RemoteAddr().(*net.TCPAddr)
						if tc.truncates && !first && !overTCP {
							return replies(func(m *dns.Msg) { m.Truncated = true }).f(ctx, w, r)
						}
						first = false
						return answer(ctx, w, r)
					}
					c := newCache(t, up, func(c *Cache) {
						c.prefetch = 1
						c.staleUpTo = time.Hour
						c.verifyStale = mode == "verify"
						c.duration = time.Hour
					})
					get := func() *dns.Msg {
						w := &client{ResponseWriter: test.ResponseWriter{TCP: tc.overTCP}}
						if _, err := c.ServeDNS(context.Background(), w, question(www, nil)); err != nil {
							t.Fatal(err)
						}
						return w.got[0]
					}
					get()
					up.reset()
					if mode == "prefetch" {
						time.Sleep(290 * time.Second)
					} else {
						time.Sleep(310 * time.Second)
					}
					get()
					time.Sleep(time.Second)
					up.mu.Lock()
					udp, tcp := up.calls-up.tcp, up.tcp
					up.mu.Unlock()
					if udp != tc.udp || tcp != tc.tcp {
						t.Errorf("refreshed by %d queries over UDP and %d over TCP, want %d and %d", udp, tcp, tc.udp, tc.tcp)
					}
					if m := get(); m.Truncated || m.Answer[0].Header().Ttl < 298 {
						t.Errorf("after the refresh: %v", m)
					}
				})
			})
		}
	}
}

func TestPrefetchJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var limits []time.Duration
		up := replies(nil, anA)
		c := newCache(t, up, func(c *Cache) {
			c.prefetch = 1
			c.duration = time.Hour
			c.Jitter = func(limit time.Duration) time.Duration {
				limits = append(limits, limit)
				return limit - 1
			}
		})
		ask(t, c, question(www, nil))
		time.Sleep(290 * time.Second)
		ask(t, c, question(www, nil))
		ask(t, c, question(www, nil)) // one refresh is enough
		time.Sleep(maxJitter - time.Millisecond)
		if up.count() != 1 {
			t.Error("refreshed at once")
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if up.count() != 2 {
			t.Errorf("%d queries upstream, want 2", up.count())
		}
		if limits[0] != maxJitter {
			t.Errorf("delay of up to %v, want %v", limits[0], maxJitter)
		}
	})
}

func TestJitterIsRandomWithinLimit(t *testing.T) {
	c := New()
	seen := map[time.Duration]bool{}
	for range 100 {
		d := c.jitter(time.Second)
		if d < 0 || d >= time.Second {
			t.Fatalf("delay of %v", d)
		}
		seen[d] = true
	}
	if len(seen) < 50 || c.jitter(0) != 0 {
		t.Errorf("%d different delays of 100", len(seen))
	}
}

func TestRefreshesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := replies(nil)
		answer := up.f
		up.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			time.Sleep(time.Second)
			return answer(ctx, w, r)
		}
		c := newCache(t, up, func(c *Cache) { c.staleUpTo = time.Hour })
		const n = maxRefreshes + 50
		name := func(i int) string { return fmt.Sprintf("n%d.example.org.", i) }
		for i := range n {
			go func() { _, _ = c.ServeDNS(context.Background(), &client{}, question(name(i), nil)) }()
		}
		time.Sleep(time.Minute)
		up.reset()
		for i := range n {
			if ask(t, c, question(name(i), nil)) == nil {
				t.Error("no stale answer")
			}
		}
		synctest.Wait()
		if up.count() != maxRefreshes {
			t.Errorf("%d refreshes under way, want %d", up.count(), maxRefreshes)
		}
		time.Sleep(time.Minute)
	})
}

// TestRefreshOutlivesClient: a refresh goes on when its client has gone.
func TestRefreshOutlivesClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := replies(nil, anA)
		answer := up.f
		up.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			time.Sleep(time.Second)
			if ctx.Err() != nil {
				return dns.RcodeServerFailure, ctx.Err()
			}
			return answer(ctx, w, r)
		}
		c := newCache(t, up, func(c *Cache) { c.staleUpTo = time.Hour })
		ask(t, c, question(www, nil))
		time.Sleep(310 * time.Second)
		ctx, cancel := context.WithCancel(context.Background())
		_, _ = c.ServeDNS(ctx, &client{}, question(www, nil))
		cancel()
		time.Sleep(2 * time.Second)
		if m := ask(t, c, question(www, nil)); m.Answer[0].Header().Ttl == 0 {
			t.Error("the refresh was cancelled with the client")
		}
		time.Sleep(time.Minute)
	})
}

// TestPanicInRefresh: a refresh must recover itself, since no server is above it.
func TestPanicInRefresh(t *testing.T) {
	for _, options := range []string{"immediate", "verify"} {
		synctest.Test(t, func(t *testing.T) {
			up := replies(nil, anA)
			c := newCache(t, up, func(c *Cache) {
				c.staleUpTo = time.Hour
				c.verifyStale = options == "verify"
				c.verifyTimeout = time.Second
			})
			ask(t, c, question(www, nil))
			answer := up.f
			up.f = func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) { panic("upstream") }
			time.Sleep(310 * time.Second)
			if m := ask(t, c, question(www, nil)); m == nil || m.Answer[0].Header().Ttl != 0 {
				t.Errorf("%s: %v in place of the stale answer", options, m)
			}
			synctest.Wait()
			up.f = answer
			time.Sleep(time.Second)
			ask(t, c, question(www, nil))
			synctest.Wait()
			if m := ask(t, c, question(www, nil)); m.Answer[0].Header().Ttl != 300 {
				t.Errorf("%s: not refreshed after the panic: %v", options, m)
			}
		})
	}
}

func TestSweepForgetsExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, replies(nil, anA), nil)
		go c.sweep()
		ask(t, c, question(www, nil))
		entries := c.Counters("").Entries[0]
		if testutil.ToFloat64(entries) != 1 {
			t.Errorf("%v entries, want 1", testutil.ToFloat64(entries))
		}
		time.Sleep(300*time.Second + sweepEvery)
		synctest.Wait()
		if testutil.ToFloat64(entries) != 0 {
			t.Errorf("%v entries, want none: all have expired", testutil.ToFloat64(entries))
		}
		c.Close()
	})
}

func TestHitAllocates(t *testing.T) {
	for _, tc := range []struct {
		name    string
		records []string
	}{
		{"one A", []string{anA}},
		{"eight A", func() (out []string) {
			for i := range 8 {
				out = append(out, fmt.Sprintf("%s 300 IN A 192.0.2.%d", www, i))
			}
			return out
		}()},
	} {
		c := newCache(t, replies(nil, tc.records...), nil)
		r := question(www, nil)
		w := &test.ResponseWriter{}
		serve := func() {
			if _, err := c.ServeDNS(context.Background(), w, r); err != nil {
				t.Error(err)
			}
		}
		serve()
		if n := testing.AllocsPerRun(200, serve); n > 3 {
			t.Errorf("%s: %v allocations for a hit, at most 3", tc.name, n)
		}
	}
}
