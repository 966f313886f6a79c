package notrack

import (
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metrics"
	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/iptables"
)

// controller is what caddy hands to setup for one server block.
func controller(bind []string, keys []string, text string) *caddy.Controller {
	c := caddy.NewTestController("dns", text)
	c.ServerBlockKeys = keys
	dnsserver.GetConfig(c).ListenHosts = bind
	return c
}

func endpoints(es []iptables.Endpoint) []string {
	var out []string
	for _, e := range es {
		out = append(out, e.String())
	}
	return out
}

func TestParse(t *testing.T) {
	root := []string{"dns://.:53"}
	for _, tc := range []struct {
		name    string
		bind    []string
		keys    []string
		text    string
		link    string
		backend string
		listen  []string
		untrack []string
	}{
		{
			name: "addresses of bind", bind: []string{"169.254.20.10", "fd00::a"}, keys: root, text: "notrack",
			link: "nodelocaldns", backend: "auto",
			listen: []string{"tcp 169.254.20.10:53", "udp 169.254.20.10:53", "tcp [fd00::a]:53", "udp [fd00::a]:53"},
		},
		{
			name: "own addresses win", bind: []string{"127.0.0.1", "10.96.0.10"}, keys: root, text: "notrack 10.96.0.10",
			link: "nodelocaldns", backend: "auto", listen: []string{"tcp 10.96.0.10:53", "udp 10.96.0.10:53"},
		},
		{
			name: "all options", keys: root,
			text: "notrack 10.96.0.10 {\n backend nftables\n interface dns0\n untrack 10.96.0.10:8080 [fd00::a]:9153\n lease off\n failover 10.96.0.99\n sync 1m\n sources 10.244.0.0/16\n uplinks eth0\n dry-run\n keep\n}",
			link: "dns0", backend: "nftables", listen: []string{"tcp 10.96.0.10:53", "udp 10.96.0.10:53"},
			untrack: []string{"tcp 10.96.0.10:8080", "udp 10.96.0.10:8080", "tcp [fd00::a]:9153", "udp [fd00::a]:9153"},
		},
		{
			name: "interface none", keys: root, text: "notrack 10.96.0.10 {\n interface none\n}",
			link: "", backend: "auto", listen: []string{"tcp 10.96.0.10:53", "udp 10.96.0.10:53"},
		},
		{
			name: "every key of the block", keys: []string{"dns://cluster.local.:53", "dns://example.org.:5353", "tls://example.org.:853"},
			text: "notrack 10.96.0.10", link: "nodelocaldns", backend: "auto",
			listen: []string{"tcp 10.96.0.10:53", "udp 10.96.0.10:53", "tcp 10.96.0.10:853", "tcp 10.96.0.10:5353", "udp 10.96.0.10:5353"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := parse(controller(tc.bind, tc.keys, tc.text))
			if err != nil {
				t.Fatal(err)
			}
			if b.plan.Link != tc.link || b.backend.Name != tc.backend {
				t.Errorf("link %q backend %q, want %q and %q", b.plan.Link, b.backend.Name, tc.link, tc.backend)
			}
			if diff := cmp.Diff(tc.listen, endpoints(b.plan.Listen)); diff != "" {
				t.Errorf("listen (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.untrack, endpoints(b.plan.Untrack)); diff != "" {
				t.Errorf("untrack (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	root := []string{"dns://.:53"}
	for _, tc := range []struct {
		name, text string
		bind, keys []string
		want       []string
	}{
		{name: "no address at all", text: "notrack", bind: []string{""}, want: []string{"no address", "bind"}},
		{name: "bind to an interface without addresses", text: "notrack", bind: []string{}, want: []string{"have none yet", "notrack 169.254.20.10"}},
		{name: "bind to the wildcard", text: "notrack", bind: []string{""}, want: []string{"no address"}},
		{name: "not an address", text: "notrack 10.96.0", want: []string{`"10.96.0" is not an IP address`}},
		{name: "wildcard address", text: "notrack 0.0.0.0", want: []string{"0.0.0.0", "wildcard"}},
		{name: "IPv6 with zone", text: "notrack", bind: []string{"fe80::1%eth0"}, want: []string{"fe80::1%eth0", "zone"}},
		{name: "twice", text: "notrack 10.96.0.10\nnotrack 10.96.0.11", want: []string{":2", "only once"}},
		{name: "unknown option", text: "notrack 10.96.0.10 {\n leese 1s\n}", want: []string{":2", `unknown option "leese"`}},
		{name: "backend iptables of no variant", text: "notrack 10.96.0.10 {\n backend iptables xtables\n}", want: []string{":2", `unknown backend "iptables xtables"`}},
		{name: "backend nftables has no variants", text: "notrack 10.96.0.10 {\n backend nftables legacy\n}", want: []string{`unknown backend "nftables legacy"`}},
		{name: "backend iptables without a lease", text: "notrack 10.96.0.10 {\n backend iptables\n lease off\n}", want: []string{"xt_recent counts whole seconds"}},
		{name: "backend iptables with another lease", text: "notrack 10.96.0.10 {\n lease 2s\n backend iptables\n}", want: []string{"it is 1s and nothing else"}},
		{name: "unknown backend", text: "notrack 10.96.0.10 {\n backend ebpf\n}", want: []string{`unknown backend "ebpf"`}},
		{name: "backend without value", text: "notrack 10.96.0.10 {\n backend\n}", want: []string{"backend takes a value", "iptables legacy"}},
		{name: "interface name too long", text: "notrack 10.96.0.10 {\n interface nodelocaldnscache\n}", want: []string{"nodelocaldnscache", "15 characters"}},
		{name: "interface name with a slash", text: "notrack 10.96.0.10 {\n interface a/b\n}", want: []string{"a/b"}},
		{name: "untrack without port", text: "notrack 10.96.0.10 {\n untrack 10.96.0.10\n}", want: []string{`"10.96.0.10"`, "ADDRESS:PORT"}},
		{name: "untrack without value", text: "notrack 10.96.0.10 {\n untrack\n}", want: []string{":2"}},
		{name: "lease too short", text: "notrack 10.96.0.10 {\n lease 10ms\n}", want: []string{`lease "10ms"`, "250ms to 5s"}},
		{name: "lease without unit", text: "notrack 10.96.0.10 {\n lease 1\n}", want: []string{`lease "1"`}},
		{name: "failover to a name", text: "notrack 10.96.0.10 {\n failover kube-dns\n}", want: []string{`failover "kube-dns"`, "ClusterIP"}},
		{name: "sync too short", text: "notrack 10.96.0.10 {\n sync 1ms\n}", want: []string{`sync "1ms"`, "1s to 1h"}},
		{name: "sources without value", text: "notrack 10.96.0.10 {\n sources\n}", want: []string{":2"}},
		{name: "a source that is no prefix", text: "notrack 10.96.0.10 {\n sources 10.244.0.1\n}", want: []string{`"10.244.0.1"`, "10.244.0.0/16"}},
		{name: "sources that overlap", text: "notrack 10.96.0.10 {\n sources 10.0.0.0/8 10.244.0.0/16\n}", want: []string{"overlap"}},
		{name: "an uplink that is no name", text: "notrack 10.96.0.10 {\n uplinks a/b\n}", want: []string{`uplinks "a/b"`}},
		{name: "dry-run with a value", text: "notrack 10.96.0.10 {\n dry-run yes\n}", want: []string{"dry-run takes no value"}},
		{name: "QUIC", text: "notrack 10.96.0.10", keys: []string{"quic://.:853"}, want: []string{"quic://"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			keys := tc.keys
			if keys == nil {
				keys = root
			}
			err := setup(controller(tc.bind, keys, tc.text))
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range append(tc.want, "plugin/notrack", "Testfile") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q: %v", want, err)
				}
			}
		})
	}
}

func TestBlocksOfOneCorefile(t *testing.T) {
	parsed := func(line int, text string) block {
		b, err := parse(controller(nil, []string{"dns://.:53"}, text))
		if err != nil {
			t.Fatal(err)
		}
		b.line = line
		return b
	}
	config, err := newConfiguration()
	if err != nil {
		t.Fatal(err)
	}
	if err := config.add(parsed(3, "notrack 10.96.0.10")); err != nil {
		t.Fatal(err)
	}
	if err := config.add(parsed(9, "notrack 10.96.0.10 169.254.20.10")); err != nil {
		t.Fatalf("two zones on one address are no conflict: %v", err)
	}
	if got := len(config.plan.Listen); got != 4 {
		t.Errorf("%d endpoints in the merged plan, want 4", got)
	}
	for _, tc := range []struct{ name, text, want string }{
		{"interface", "notrack 10.96.0.10 {\n interface dns0\n}", "interface dns0 conflicts with interface nodelocaldns of the notrack block in line 3"},
		{"lease", "notrack 10.96.0.10 {\n lease 2s\n}", "lease 2s conflicts with lease 1s of the notrack block in line 3"},
		{"sources", "notrack 10.96.0.10 {\n sources any\n}", "sources any conflicts with sources local"},
		{"keep", "notrack 10.96.0.10 {\n keep\n}", "keep true conflicts with keep false"},
		{"variant", "notrack 10.96.0.10 {\n backend iptables nft\n}", "backend iptables nft conflicts with backend auto of the notrack block in line 3"},
		{"backend", "notrack 10.96.0.10 {\n backend nftables\n}", "backend nftables conflicts with backend auto of the notrack block in line 3"},
	} {
		if err := config.add(parsed(20, tc.text)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want %q", tc.name, err, tc.want)
		}
	}
}

// prometheus below us is passed over: it takes twice as long for the same.
func TestQueriesAreNotCountedByPrometheusItself(t *testing.T) {
	c := controller([]string{"10.96.0.10"}, []string{"dns://.:53"}, "notrack 10.96.0.10")
	if err := setup(c); err != nil {
		t.Fatal(err)
	}
	plugins := dnsserver.GetConfig(c).Plugin
	below := metrics.New("localhost:0")
	n := plugins[len(plugins)-1](below).(*NoTrack)
	if n.Next == plugin.Handler(below) {
		t.Error("prometheus itself is next")
	}
	if n.Next.Name() != below.Name() {
		t.Errorf("next is %s", n.Next.Name())
	}
}
