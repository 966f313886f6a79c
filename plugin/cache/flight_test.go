package cache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
)

// asker is a way to ask for one name.
type asker struct {
	name string
	edit func(*dns.Msg)
	tcp  bool
}

func edns(options ...dns.EDNS0) func(*dns.Msg) {
	return func(m *dns.Msg) {
		m.SetEdns0(1232, false)
		m.IsEdns0().Option = options
	}
}

func withSubnet(bits uint8) func(*dns.Msg) {
	return edns(&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: bits, Address: net.IPv4zero.To4()})
}

// moody treats queries that are asked in one way badly. It answers all others with an
// address after 50 ms.
type moody struct {
	of     asker
	manner func(w dns.ResponseWriter, m *dns.Msg) (int, error)
}

func (u *moody) Name() string { return "moody" }

func (u *moody) ServeDNS(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	m := new(dns.Msg).SetReply(r)
	like := question(www, u.of.edit)
	if r.RecursionDesired == like.RecursionDesired && r.CheckingDisabled == like.CheckingDisabled &&
		r.Question[0].Qtype == like.Question[0].Qtype && optText(r) == optText(like) && overTCP(w.RemoteAddr()) == u.of.tcp {
		return u.manner(w, m)
	}
	time.Sleep(50 * time.Millisecond)
	rr, err := dns.NewRR(fmt.Sprintf("%s 300 IN A 192.0.2.1", www))
	if err != nil {
		return dns.RcodeServerFailure, err
	}
	m.Answer = []dns.RR{rr}
	return 0, w.WriteMsg(m)
}

func optText(m *dns.Msg) string {
	if opt := m.IsEdns0(); opt != nil {
		return opt.String()
	}
	return ""
}

func noFlights(t *testing.T, c *Cache) {
	t.Helper()
	if n, waiters := c.flights.Abandon(); n != 0 || waiters != 0 {
		t.Errorf("%d flights and %d waiters left", n, waiters)
	}
}

// stuck is a client that never reads.
type stuck struct {
	test.ResponseWriter
	free chan struct{}
}

func (w *stuck) WriteMsg(*dns.Msg) error {
	<-w.free
	return errTest
}

// TestClientThatDoesNotRead: other clients do not notice.
func TestClientThatDoesNotRead(t *testing.T) {
	for _, mode := range []string{"miss", "verify"} {
		t.Run(mode, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := replies(nil, www+" 10 IN A 192.0.2.1")
				c := newCache(t, up, func(c *Cache) {
					if mode == "verify" {
						c.staleUpTo, c.verifyStale = time.Hour, true
					}
				})
				if mode == "verify" {
					ask(t, c, question(www, nil))
					time.Sleep(20 * time.Second)
					up.reset()
				}
				w := &stuck{ResponseWriter: test.ResponseWriter{TCP: true}, free: make(chan struct{})}
				go func() { _, _ = c.ServeDNS(context.Background(), w, question(www, nil)) }()
				synctest.Wait()
				before := runtime.NumGoroutine()
				for range 6000 {
					go func() {
						if m := ask(t, c, question(www, nil)); m == nil || len(m.Answer) != 1 || m.Answer[0].Header().Ttl == 0 {
							t.Errorf("got %v", m)
						}
					}()
				}
				synctest.Wait()
				// Goroutines of the runtime, which run finalizers, start and end.
				if n := runtime.NumGoroutine() - before; n > 10 {
					t.Errorf("%d goroutines more than before 6,000 queries", n)
				}
				if up.count() != 1 {
					t.Errorf("%d queries upstream, want 1", up.count())
				}
				close(w.free)
			})
		})
	}
}

// TestLostPacket: a query upstream is lost. Clients that ask meanwhile get the answer of
// another query.
func TestLostPacket(t *testing.T) {
	for _, tc := range []struct {
		name   string
		usual  time.Duration // what earlier answers took
		after  time.Duration // when the others come
		within time.Duration // how long they wait at most
		calls  int
	}{
		{"at once", 0, 0, maxPatience, 2},
		{"at once, with a fast upstream", time.Millisecond, 0, minPatience, 2},
		{"at once, with a slow upstream", time.Second, 0, maxPatience, 1 + 3},
		{"a client that repeats its query", 0, time.Second, 0, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := replies(nil, anA)
				answer := up.f
				var lose atomic.Bool
				up.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
					if lose.CompareAndSwap(true, false) {
						time.Sleep(2 * time.Second)
						return dns.RcodeServerFailure, errTest
					}
					time.Sleep(tc.usual)
					return answer(ctx, w, r)
				}
				c := newCache(t, up, nil)
				for i := range 50 {
					if tc.usual > 0 {
						ask(t, c, question(fmt.Sprintf("n%d.example.org.", i), nil))
					}
				}
				up.reset()
				lose.Store(true)
				var wg sync.WaitGroup
				wg.Go(func() {
					if m := ask(t, c, question(www, nil)); m == nil || len(m.Answer) != 1 {
						t.Errorf("the first client got %v, though others have the answer", m)
					}
				})
				time.Sleep(tc.after + 1)
				start := time.Now()
				for range 100 {
					wg.Go(func() {
						if m := ask(t, c, question(www, nil)); m == nil || len(m.Answer) != 1 {
							t.Errorf("got %v", m)
						}
						if waited := time.Since(start); waited > tc.within+tc.usual {
							t.Errorf("answered after %v, want %v", waited, tc.within+tc.usual)
						}
					})
				}
				wg.Wait()
				if up.count() != tc.calls {
					t.Errorf("%d queries upstream, want %d", up.count(), tc.calls)
				}
				time.Sleep(time.Minute)
			})
		})
	}
}

// TestDeadUpstream: while the upstream does not respond, all clients that wait for a name
// cost a few queries a second, and a failure is one error.
func TestDeadUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes, clients = 5 * time.Second, 1000
		up := &upstream{f: func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
			time.Sleep(takes)
			return dns.RcodeServerFailure, errTest
		}}
		c := newCache(t, up, nil)
		var mu sync.Mutex
		var errs []error
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				start := time.Now()
				code, err := c.ServeDNS(context.Background(), &client{}, question(www, nil))
				if code != dns.RcodeServerFailure || time.Since(start) > takes+maxPatience {
					t.Errorf("code %d after %v", code, time.Since(start))
				}
				if err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if limit := int(takes/maxPatience) + 2; up.count() > limit {
			t.Errorf("%d queries upstream, at most %d", up.count(), limit)
		}
		if len(errs) > up.count() {
			t.Errorf("%d errors for %d queries upstream", len(errs), up.count())
		}
		counted := func(err error) bool {
			var shared *sharedError
			return errors.As(err, &shared) && shared.others == clients-2
		}
		if !slices.ContainsFunc(errs, counted) {
			t.Errorf("no error counts the %d queries that waited: %v", clients-2, errs)
		}
		time.Sleep(2 * takes)
	})
}

// TestUpstreamRecovers: a query from before the recovery does not fail after others have
// been answered.
func TestUpstreamRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := replies(nil, anA)
		answer := up.f
		var away atomic.Bool
		away.Store(true)
		up.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			// A name that never works is no outage.
			if away.Load() || strings.HasPrefix(r.Question[0].Name, "broken") {
				time.Sleep(5 * time.Second)
				return dns.RcodeServerFailure, errTest
			}
			return answer(ctx, w, r)
		}
		c := newCache(t, up, nil)
		serve := func(name string) (string, error) {
			w := &client{}
			code, err := c.ServeDNS(context.Background(), w, question(name, nil))
			if len(w.got) == 0 {
				return dns.RcodeToString[code], err
			}
			return dns.RcodeToString[w.got[0].Rcode], err
		}
		if got, _ := serve("first.example.org."); got != "SERVFAIL" {
			t.Fatalf("got %s from an upstream that does not respond", got)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if got, err := serve("early.example.org."); got != "NOERROR" {
				t.Errorf("a query from before the recovery got %s (%v)", got, err)
			}
		})
		time.Sleep(3 * time.Second)
		away.Store(false)
		if got, _ := serve(www); got != "NOERROR" {
			t.Errorf("got %s after the recovery", got)
		}
		wg.Wait()
		up.reset()
		wg.Go(func() { _, _ = serve("broken.example.org.") })
		time.Sleep(time.Second)
		_, _ = serve("works.example.org.")
		wg.Wait()
		// It sends a probe, and asks anew once, since another query was answered.
		if up.count() > 4 {
			t.Errorf("%d queries upstream, want 4 at most: a failure among answers is not asked again and again", up.count())
		}
		time.Sleep(10 * time.Second)
	})
}

// TestPrivateResponses: after a response for one client only, later clients do not wait for
// one another, for some time.
func TestPrivateResponses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = 50 * time.Millisecond
		truncate := true
		up := &upstream{f: func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			time.Sleep(takes)
			return replies(func(m *dns.Msg) { m.Truncated = truncate }, anA).f(ctx, w, r)
		}}
		c := newCache(t, up, func(c *Cache) { c.minpttl, c.pttl = time.Second, time.Second })
		slowest := func(n int) time.Duration {
			start := time.Now()
			var wg sync.WaitGroup
			for range n {
				wg.Go(func() { ask(t, c, question(www, nil)) })
			}
			wg.Wait()
			return time.Since(start)
		}
		if took := slowest(3); took != 2*takes {
			t.Errorf("first: %v, want %v: one asks, and then the others", took, 2*takes)
		}
		if took := slowest(3); took != takes {
			t.Errorf("again: %v, want %v", took, takes)
		}
		time.Sleep(10 * time.Second) // privateTime of package flight
		truncate = false
		up.reset()
		if slowest(3); up.count() != 1 {
			t.Errorf("%d queries upstream for a response that is for all, want 1", up.count())
		}
	})
}

// TestFlushEndsSharing: a query after a flush does not get the answer to a query before it.
func TestFlushEndsSharing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := replies(nil, anA)
		answer := up.f
		up.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			time.Sleep(minPatience / 2)
			return answer(ctx, w, r)
		}
		c := newCache(t, up, nil)
		for range 2 { // the second waits for the first
			go ask(t, c, question(www, nil))
			synctest.Wait()
		}
		c.flights.Abandon()
		ask(t, c, question(www, nil))
		if up.count() != 2 {
			t.Errorf("%d queries upstream, want 2", up.count())
		}
		synctest.Wait()
		noFlights(t, c)
	})
}

// TestQueryOfAQuery: a plugin below the cache asks the cache for the name under way, as for
// a CNAME record that points to itself by a wildcard.
func TestQueryOfAQuery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c *Cache
		up := replies(nil, anA)
		answer := up.f
		depth := 0
		up.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			if depth++; depth < 10 {
				inner := &client{}
				if _, err := c.ServeDNS(ctx, inner, r.Copy()); err != nil || len(inner.got) != 1 {
					t.Errorf("depth %d: got %v, error %v", depth, inner.got, err)
				}
			}
			return answer(ctx, w, r)
		}
		c = newCache(t, up, nil)
		start := time.Now()
		ask(t, c, question(www, nil))
		if took := time.Since(start); took != 0 || up.count() != 10 {
			t.Errorf("%d queries in %v, want 10 at once", up.count(), took)
		}
	})
}

// ownSockets returns a server and its client, both in this process.
func ownSockets(t *testing.T) (server, client *net.UDPConn) {
	t.Helper()
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	client, err = net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return server, client
}

// TestComesOfUs has a row for each kind of client.
func TestComesOfUs(t *testing.T) {
	server, udp := ownSockets(t)
	ours := udp.LocalAddr().(*net.UDPAddr)
	gone, err := net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv6loopback})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	tcp, err := net.DialTCP("tcp", nil, listener.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	for _, tc := range []struct {
		name           string
		client, server net.Addr
		want           bool
	}{
		{"a socket of this process", ours, server.LocalAddr(), true},
		{"a connection of this process", tcp.LocalAddr(), listener.Addr(), true},
		{"another process", gone.LocalAddr(), server.LocalAddr(), false},
		{"the port of another protocol", &net.TCPAddr{IP: ours.IP, Port: ours.Port}, server.LocalAddr(), false},
		{"another host", &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: ours.Port}, server.LocalAddr(), false},
		{"no address", anyAddr(false), server.LocalAddr(), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := comesOfUs(&ends{client: tc.client, server: tc.server}); got != tc.want {
				t.Errorf("comesOfUs is %t, want %t", got, tc.want)
			}
		})
	}
}

// TestServerThatIsOurselves: a query that comes back over the network does not wait for
// itself, even if many others wait.
func TestServerThatIsOurselves(t *testing.T) {
	server, upstream := ownSockets(t)
	for _, tc := range []struct {
		name   string
		client net.Addr
		calls  int
	}{
		{"ours", upstream.LocalAddr(), 2},
		{"a client's", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := replies(nil, anA)
				answer := up.f
				up.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
					time.Sleep(minPatience / 2)
					return answer(ctx, w, r)
				}
				c := newCache(t, up, nil)
				go ask(t, c, question(www, nil))
				synctest.Wait()
				if _, err := c.ServeDNS(context.Background(), &ends{client: tc.client, server: server.LocalAddr()}, question(www, nil)); err != nil {
					t.Error(err)
				}
				if up.count() != tc.calls {
					t.Errorf("%d queries upstream, want %d", up.count(), tc.calls)
				}
			})
		})
	}
}

// ends is a writer with only addresses.
type ends struct {
	test.ResponseWriter
	client, server net.Addr
}

func (w *ends) RemoteAddr() net.Addr { return w.client }
func (w *ends) LocalAddr() net.Addr  { return w.server }

// TestTransfers: two transfers at the same time are both complete.
func TestTransfers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &upstream{f: func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			for i := range 3 {
				time.Sleep(time.Millisecond)
				m := new(dns.Msg).SetReply(r)
				rr, err := dns.NewRR(fmt.Sprintf("h%d.example.org. 7 IN A 192.0.2.%d", i, i))
				if err != nil {
					return dns.RcodeServerFailure, err
				}
				m.Answer = []dns.RR{rr}
				if err := w.WriteMsg(m); err != nil {
					return dns.RcodeServerFailure, err
				}
			}
			return 0, nil
		}}
		c := newCache(t, up, func(c *Cache) { c.minpttl = time.Minute })
		for _, qtype := range []uint16{dns.TypeAXFR, dns.TypeIXFR} {
			up.reset()
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					w := &client{ResponseWriter: test.ResponseWriter{TCP: true}}
					if _, err := c.ServeDNS(context.Background(), w, question("example.org.", func(m *dns.Msg) { m.Question[0].Qtype = qtype })); err != nil {
						t.Error(err)
					}
					if len(w.got) != 3 || w.got[0].Answer[0].Header().Ttl != 7 {
						t.Errorf("%s: %d messages: %v", dns.Type(qtype), len(w.got), w.got)
					}
				})
			}
			wg.Wait()
			if up.count() != 2 {
				t.Errorf("%s: %d queries upstream, want 2", dns.Type(qtype), up.count())
			}
		}
	})
}
