package health

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/iptables"
)

// failingNode is a block whose misses fail.
type failingNode struct {
	t     *testing.T
	m     Monitor
	f     *failing // of m
	block stubBlock
	names atomic.Int64

	own     func() (rcode int, err error) // the block's upstreams
	takes   time.Duration                 // until they answer
	cluster error                         // of the cluster's DNS
	pods    error                         // of the cluster's DNS after a failover
	asked   atomic.Int64                  // questions to the cluster
}

func newFailingNode(t *testing.T) *failingNode {
	n := &failingNode{t: t, own: func() (int, error) { return dns.RcodeServerFailure, errors.New("i/o timeout") }}
	n.f = &n.m.failing
	n.f.begin(func() {})
	return n
}

func (n *failingNode) next() func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
	return func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		select {
		case <-time.After(n.takes):
		case <-ctx.Done():
			return dns.RcodeServerFailure, ctx.Err()
		}
		rcode, err := n.own()
		if err != nil {
			return rcode, err
		}
		m := new(dns.Msg).SetRcode(r, rcode)
		return dns.RcodeSuccess, w.WriteMsg(m)
	}
}

// miss asks for a name, or for a new one.
func (n *failingNode) miss(ctx context.Context, name string) {
	if i := n.names.Add(1); name == "" {
		name = fmt.Sprintf("n%d.example.org.", i)
	}
	q := Query{Block: &n.block, Pass: n.next(), W: dnstest.NewRecorder(&test.ResponseWriter{}), R: new(dns.Msg).SetQuestion(name, dns.TypeA)}
	_, _ = n.f.serve(ctx, q, func(ctx context.Context, q Query) (int, error) { return q.pass(ctx) })
}

// misses asks for names, one each second.
func (n *failingNode) misses(count int, name string) {
	for range count {
		n.miss(n.t.Context(), name)
		time.Sleep(time.Second)
	}
}

func (n *failingNode) check() {
	n.f.check(n.t.Context(), resolvers{
		bypass: func(context.Context, failedMiss) error { n.asked.Add(1); return n.cluster },
		asPod:  func(context.Context, failedMiss) error { return n.pods },
		own:    askOwn,
	})
}

func (n *failingNode) over() bool {
	_, why := n.f.join(&Config{}, nil)
	return why != nil
}

// rounds checks until the failback, and returns how long that took.
func (n *failingNode) rounds() (took time.Duration) {
	began := time.Now()
	for n.over() && time.Since(began) < time.Hour {
		time.Sleep(failoverInterval)
		n.check()
	}
	return time.Since(began)
}

func TestFailingMisses(t *testing.T) {
	ok := func() (int, error) { return dns.RcodeSuccess, nil }
	broken := errors.New("no answer")
	for _, tc := range []struct {
		name string
		do   func(n *failingNode)
		over bool
	}{
		{"different names, of which the cluster answers", func(n *failingNode) { n.misses(3, "") }, true},
		{"answered with SERVFAIL", func(n *failingNode) {
			n.own = func() (int, error) { return dns.RcodeServerFailure, nil }
			n.misses(3, "")
		}, true},
		{"they hang", func(n *failingNode) {
			n.takes = time.Minute
			for range 3 {
				go n.miss(n.t.Context(), "")
				time.Sleep(time.Second)
			}
			time.Sleep(pendingFor)
		}, true},
		{"too few", func(n *failingNode) { n.misses(2, "") }, false},
		{"one name again and again", func(n *failingNode) { n.misses(9, "broken.example.org.") }, false},
		{"one of them is answered", func(n *failingNode) {
			n.misses(2, "")
			failing := n.own
			n.own = ok
			n.misses(1, "")
			n.own = failing
			n.misses(1, "")
		}, false},
		{"names that do not exist", func(n *failingNode) {
			n.own = func() (int, error) { return dns.RcodeNameError, nil }
			n.misses(9, "")
		}, false},
		{"refused by ourselves", func(n *failingNode) {
			n.own = func() (int, error) { return dns.RcodeRefused, errors.New("max_concurrent exceeded") }
			n.misses(9, "")
		}, false},
		{"clients have gone", func(n *failingNode) {
			ctx, cancel := context.WithCancel(n.t.Context())
			cancel()
			for range 9 {
				n.miss(ctx, "")
				time.Sleep(time.Second)
			}
		}, false},
		{"the cluster does not answer either", func(n *failingNode) { n.cluster = broken; n.misses(9, "") }, false},
		{"all at once", func(n *failingNode) {
			for range 9 {
				n.miss(n.t.Context(), "")
			}
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newFailingNode(t)
				defer n.f.end()
				tc.do(n)
				n.check()
				if n.over() != tc.over {
					t.Errorf("failed over: %t, want %t", n.over(), tc.over)
				}
			})
		})
	}
}

func TestFailbackOfFailingMisses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFailingNode(t)
		defer n.f.end()
		failing, ok := n.own, func() (int, error) { return dns.RcodeSuccess, nil }
		var last time.Duration
		for i := range 4 {
			n.own = failing
			n.misses(3, "")
			if n.check(); !n.over() {
				t.Fatalf("round %d: no failover", i)
			}
			time.Sleep(10 * time.Second)
			if n.check(); !n.over() {
				t.Fatalf("round %d: failback while misses fail", i)
			}
			n.own = ok
			took := n.rounds()
			if took < goodRounds*failoverInterval || took < last || took > maxFailover {
				t.Errorf("round %d: failback %s after misses worked again, %s the time before", i, took, last)
			}
			last = took
		}
		if last < 4*minFailover/2 {
			t.Errorf("the fourth failover lasted only %s: queries flap", last)
		}
	})
}

// Where the cluster's DNS does not answer pods, cached answers are better.
func TestFailingMissesWithoutClusterDNS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFailingNode(t)
		defer n.f.end()
		n.pods = errors.New("refused")
		n.misses(3, "")
		if n.check(); !n.over() {
			t.Fatal("no failover")
		}
		if took := n.rounds(); took > 2*failoverInterval {
			t.Errorf("failed over for %s although no server answers", took)
		}
		asked := n.asked.Load()
		n.misses(3, "")
		if n.check(); n.over() || n.asked.Load() != asked {
			t.Error("tried again at once")
		}
	})
}

// Our rules must not bring questions to the cluster's DNS back to us.
func TestBypassServers(t *testing.T) {
	listen := func(addrs ...string) (out []iptables.Endpoint) {
		for _, a := range addrs {
			out = append(out, iptables.Endpoint{Addr: netip.MustParseAddr(a), Port: 53, Proto: iptables.UDP})
		}
		return out
	}
	kubeDNS := netip.MustParseAddr("10.96.0.10")
	there := func(netip.AddrPort) (bool, error) { return true, nil }
	for _, tc := range []struct {
		name         string
		listen       []iptables.Endpoint
		service      map[string]netip.Addr
		hasEndpoints func(netip.AddrPort) (bool, error)
		want         string
	}{
		{"a link-local address alone", listen("169.254.20.10"), map[string]netip.Addr{"169.254.20.10": kubeDNS}, there, "[10.96.0.10:53]"},
		{"the Service itself", listen("10.96.0.10"), map[string]netip.Addr{"10.96.0.10": kubeDNS}, there, "[]"},
		{"no Service for one of them", listen("169.254.20.10", "169.254.20.11"), map[string]netip.Addr{"169.254.20.10": kubeDNS}, there, "[]"},
		{"the Service is gone", listen("169.254.20.10"), map[string]netip.Addr{"169.254.20.10": kubeDNS}, func(netip.AddrPort) (bool, error) { return false, nil }, "[]"},
	} {
		config := &Config{
			Blocks:     func() []Block { return nil },
			Listen:     tc.listen,
			FailoverTo: func(a netip.Addr) netip.Addr { return tc.service[a.String()] },
		}
		got := config.bypassServers(tc.hasEndpoints)
		if fmt.Sprint(got) != tc.want {
			t.Errorf("%s: %v, want %s", tc.name, got, tc.want)
		}
	}
}
