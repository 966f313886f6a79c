package notrack

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
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

func tcp(s string) net.Addr {
	a, err := net.ResolveTCPAddr("tcp", s)
	if err != nil {
		panic(err)
	}
	return a
}

func TestChecksAreAnsweredHere(t *testing.T) {
	config, err := newConfiguration()
	if err != nil {
		t.Fatal(err)
	}
	other, err := newConfiguration()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		remote string
		query  *dns.Msg
		passed bool // on to the next plugin
		own    bool // answered as ours
	}{
		{"own check in the root zone", "10.96.0.10:4000", config.query("."), false, true},
		{"own check in a zone", "10.96.0.10:4000", config.query("cluster.local."), false, true},
		{"another load's check", "10.96.0.10:4000", other.query("cluster.local."), false, false},
		{"a pod asks for the name", "10.244.0.11:4000", config.query("cluster.local."), true, false},
		{"an ordinary query of the node", "10.96.0.10:4000", new(dns.Msg).SetQuestion("example.org.", dns.TypeA), true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			passed := false
			n := &NoTrack{config: config, Next: plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
				passed = true
				return dns.RcodeSuccess, w.WriteMsg(new(dns.Msg).SetReply(r))
			})}
			w := dnstest.NewRecorder(&writer{remote: udp(tc.remote), local: udp("10.96.0.10:53")})
			if _, err := n.ServeDNS(context.Background(), w, tc.query); err != nil {
				t.Fatal(err)
			}
			if passed != tc.passed {
				t.Errorf("passed on: %v, want %v", passed, tc.passed)
			}
			if err := config.isAnswer(tc.query, w.Msg); (err == nil) != tc.own {
				t.Errorf("isAnswer: %v, want an answer of ours: %v", err, tc.own)
			}
			if !tc.passed && !tc.own && w.Msg.Rcode != dns.RcodeRefused {
				t.Errorf("rcode %s, want REFUSED", dns.RcodeToString[w.Msg.Rcode])
			}
		})
	}
}

func TestCheckNamesFit(t *testing.T) {
	config, err := newConfiguration()
	if err != nil {
		t.Fatal(err)
	}
	for _, zone := range []string{".", "cluster.local.", "10.in-addr.arpa."} {
		name := config.query(zone).Question[0].Name
		if _, ok := dns.IsDomainName(name); !ok || !dns.IsSubDomain(zone, name) {
			t.Errorf("%q is no name in zone %q", name, zone)
		}
		if check, own := config.isCheck(strings.ToUpper(name)); !check || !own {
			t.Errorf("%q in upper case: check %v, own %v", name, check, own)
		}
	}
}

func TestAddresses(t *testing.T) {
	for _, tc := range []struct {
		name          string
		remote, local net.Addr
		want          string
		proto         uint8
	}{
		{"UDP", udp("10.244.0.11:4000"), udp("10.96.0.10:53"), "10.244.0.11:4000 10.96.0.10:53", unix.IPPROTO_UDP},
		{"TCP", tcp("10.244.0.11:4000"), tcp("10.96.0.10:53"), "10.244.0.11:4000 10.96.0.10:53", unix.IPPROTO_TCP},
		{"IPv6", udp("[fd00::1]:4000"), udp("[fd00::a]:53"), "[fd00::1]:4000 [fd00::a]:53", unix.IPPROTO_UDP},
		{"IPv4 on a wildcard IPv6 socket", &net.UDPAddr{IP: net.ParseIP("10.244.0.11"), Port: 4000}, udp("10.96.0.10:53"), "10.244.0.11:4000 10.96.0.10:53", unix.IPPROTO_UDP},
		{"neither", &net.UnixAddr{Name: "x"}, udp("10.96.0.10:53"), "invalid AddrPort invalid AddrPort", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client, server, proto := addresses(&writer{remote: tc.remote, local: tc.local})
			if got := client.String() + " " + server.String(); got != tc.want || proto != tc.proto {
				t.Errorf("got %s proto %d, want %s proto %d", got, proto, tc.want, tc.proto)
			}
		})
	}
}
