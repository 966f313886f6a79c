package notrack

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/agent/checks"
	"github.com/trackless-dns/trackless/plugin/fairness"
)

// writer is a response writer between two given transport addresses.
type writer struct {
	test.ResponseWriter
	remote, local net.Addr
}

func (w *writer) RemoteAddr() net.Addr { return w.remote }
func (w *writer) LocalAddr() net.Addr  { return w.local }

func udp(s string) net.Addr {
	a, err := net.ResolveUDPAddr("udp", s)
	if err != nil {
		panic(err)
	}
	return a
}

func loaded(t *testing.T) *configuration {
	t.Helper()
	config, err := newConfiguration()
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func TestProbes(t *testing.T) {
	config, other := loaded(t), loaded(t)
	for _, tc := range []struct {
		name   string
		remote string
		query  *dns.Msg
		want   string // passed, answered, refused, silent
	}{
		{"own check in the root zone", "10.96.0.10:4000", config.identity.Query(checks.CheckLabel, "."), "answered"},
		{"own check in a zone", "10.96.0.10:4000", config.identity.Query(checks.CheckLabel, "cluster.local."), "answered"},
		{"own lease probe", "10.96.0.10:4000", config.identity.Query(checks.LeaseLabel, "cluster.local."), "answered"},
		{"another load's check", "10.96.0.10:4000", other.identity.Query(checks.CheckLabel, "cluster.local."), "refused"},
		{"another load's lease probe", "10.96.0.10:4000", other.identity.Query(checks.LeaseLabel, "cluster.local."), "silent"},
		{"a pod asks for the name", "10.244.0.11:4000", config.identity.Query(checks.CheckLabel, "cluster.local."), "passed"},
		{"a pod asks for the lease's name", "10.244.0.11:4000", config.identity.Query(checks.LeaseLabel, "cluster.local."), "passed"},
		{"an ordinary query of the node", "10.96.0.10:4000", new(dns.Msg).SetQuestion("example.org.", dns.TypeA), "passed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := "silent"
			n := &NoTrack{config: config, block: &dnsserver.Config{}, Next: plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
				got = "passed"
				return dns.RcodeSuccess, w.WriteMsg(new(dns.Msg).SetReply(r))
			})}
			w := dnstest.NewRecorder(&writer{remote: udp(tc.remote), local: udp("10.96.0.10:53")})
			if _, err := n.ServeDNS(context.Background(), w, tc.query); err != nil {
				t.Fatal(err)
			}
			if got != "passed" && w.Msg != nil {
				got = "refused"
				if _, err := config.identity.AnsweredBy(tc.query, w.Msg); err == nil {
					got = "answered"
				}
				if w.Msg.Rcode != dns.RcodeRefused {
					t.Errorf("rcode %s: a cache would keep it", dns.RcodeToString[w.Msg.Rcode])
				}
			}
			if got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

// Every probe must pass the plugins between notrack and the checkpoint.
func TestProbesPassTheCheckpoint(t *testing.T) {
	config := loaded(t)
	gate := fairness.Own(caddy.NewTestController("dns", ""))
	p := &checkpoint{config: config, Next: test.ErrorHandler(), gate: gate}
	for _, tc := range []struct {
		name   string
		remote string
		query  *dns.Msg
		here   bool
	}{
		{"own check", "10.96.0.10:4000", config.identity.Query(checks.CheckLabel, "."), true},
		{"own lease probe", "10.96.0.10:4000", config.identity.Query(checks.LeaseLabel, "."), true},
		{"another load's check", "10.96.0.10:4000", loaded(t).identity.Query(checks.CheckLabel, "."), false},
		{"a pod's", "10.244.0.11:4000", config.identity.Query(checks.CheckLabel, "."), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := dnstest.NewRecorder(&writer{remote: udp(tc.remote), local: udp("10.96.0.10:53")})
			_, _ = p.ServeDNS(context.Background(), w, tc.query)
			_, err := config.identity.AnsweredBy(tc.query, w.Msg)
			if (err == nil) != tc.here {
				t.Errorf("answered here: %v, want %v", err == nil, tc.here)
			}
		})
	}
}

// Rules of another instance may bring our queries to the cluster's DNS back to us.
func TestOwnQueriesToTheClusterAreNotAnswered(t *testing.T) {
	client := netip.MustParseAddrPort("192.0.2.10:40212")
	t.Cleanup(process.Health.Asks(client))
	passed := 0
	next := plugin.HandlerFunc(func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
		passed++
		return dns.RcodeSuccess, nil
	})
	n := &NoTrack{Next: next, config: loaded(t), block: &dnsserver.Config{}}
	for remote, want := range map[string]int{"192.0.2.10:40212": 0, "192.0.2.10:40213": 1} {
		passed = 0
		w := &writer{remote: udp(remote), local: udp("10.96.0.10:53")}
		if _, err := n.ServeDNS(t.Context(), w, new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA)); err != nil || passed != want {
			t.Errorf("%s: passed on %d times, %v", remote, passed, err)
		}
	}
}
