package notrack

import (
	"fmt"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metrics"
	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/internal/testgolden"
	"github.com/trackless-dns/trackless/iptables"
)

// controller is caddy's input to setup for one server block.
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
			text: "notrack 10.96.0.10 {\n backend nftables\n interface dns0\n untrack 10.96.0.10:8080 [fd00::a]:9153\n lease off\n warm 500ms\n failover 10.96.0.99\n sync 1m\n sources 10.244.0.0/16\n uplinks eth0\n dry-run\n keep\n}",
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

func TestParseWarm(t *testing.T) {
	for text, want := range map[string]string{
		"":                                       "2s",
		"warm off":                               "off",
		"warm 500ms":                             "500ms",
		"warm 3s names /var/lib/trackless/names": "3s names /var/lib/trackless/names",
		"warm off names /n":                      "off names /n",
		"warm 3s names /n\n warm 1s":             "1s",
	} {
		b, err := parse(controller(nil, []string{"dns://.:53"}, "notrack 10.96.0.10 {\n "+text+"\n}"))
		if got := warmText(b); err != nil || got != want {
			t.Errorf("%q: %s, %v, want %s", text, got, err, want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	root := []string{"dns://.:53"}
	var got strings.Builder
	for _, tc := range []struct {
		name, text string
		bind, keys []string
	}{
		{name: "no address at all", text: "notrack", bind: []string{""}},
		{name: "bind to an interface without addresses", text: "notrack", bind: []string{}},
		{name: "bind to the wildcard", text: "notrack", bind: []string{""}},
		{name: "not an address", text: "notrack 10.96.0"},
		{name: "wildcard address", text: "notrack 0.0.0.0"},
		{name: "IPv6 with zone", text: "notrack", bind: []string{"fe80::1%eth0"}},
		{name: "twice", text: "notrack 10.96.0.10\nnotrack 10.96.0.11"},
		{name: "unknown option", text: "notrack 10.96.0.10 {\n leese 1s\n}"},
		{name: "backend iptables of no variant", text: "notrack 10.96.0.10 {\n backend iptables xtables\n}"},
		{name: "backend nftables has no variants", text: "notrack 10.96.0.10 {\n backend nftables legacy\n}"},
		{name: "backend iptables without a lease", text: "notrack 10.96.0.10 {\n backend iptables\n lease off\n}"},
		{name: "backend iptables with another lease", text: "notrack 10.96.0.10 {\n lease 2s\n backend iptables\n}"},
		{name: "unknown backend", text: "notrack 10.96.0.10 {\n backend ebpf\n}"},
		{name: "backend without value", text: "notrack 10.96.0.10 {\n backend\n}"},
		{name: "interface name too long", text: "notrack 10.96.0.10 {\n interface nodelocaldnscache\n}"},
		{name: "interface name with a slash", text: "notrack 10.96.0.10 {\n interface a/b\n}"},
		{name: "untrack without port", text: "notrack 10.96.0.10 {\n untrack 10.96.0.10\n}"},
		{name: "untrack without value", text: "notrack 10.96.0.10 {\n untrack\n}"},
		{name: "lease too short", text: "notrack 10.96.0.10 {\n lease 10ms\n}"},
		{name: "lease without unit", text: "notrack 10.96.0.10 {\n lease 1\n}"},
		{name: "failover to a name", text: "notrack 10.96.0.10 {\n failover kube-dns\n}"},
		{name: "sync too short", text: "notrack 10.96.0.10 {\n sync 1ms\n}"},
		{name: "warm without unit", text: "notrack 10.96.0.10 {\n warm 2\n}"},
		{name: "warm for no time", text: "notrack 10.96.0.10 {\n warm 0s\n}"},
		{name: "warm without value", text: "notrack 10.96.0.10 {\n warm\n}"},
		{name: "warm with names and no file", text: "notrack 10.96.0.10 {\n warm 2s names\n}"},
		{name: "warm with a file in no folder", text: "notrack 10.96.0.10 {\n warm 2s names names.txt\n}"},
		{name: "warm with another word", text: "notrack 10.96.0.10 {\n warm 2s file /var/lib/trackless/names\n}"},
		{name: "sources without value", text: "notrack 10.96.0.10 {\n sources\n}"},
		{name: "a source that is no prefix", text: "notrack 10.96.0.10 {\n sources 10.244.0.1\n}"},
		{name: "sources that overlap", text: "notrack 10.96.0.10 {\n sources 10.0.0.0/8 10.244.0.0/16\n}"},
		{name: "an uplink that is no name", text: "notrack 10.96.0.10 {\n uplinks a/b\n}"},
		{name: "dry-run with a value", text: "notrack 10.96.0.10 {\n dry-run yes\n}"},
		{name: "QUIC", text: "notrack 10.96.0.10", keys: []string{"quic://.:853"}},
	} {
		keys := tc.keys
		if keys == nil {
			keys = root
		}
		err := setup(controller(tc.bind, keys, tc.text))
		if err == nil {
			t.Fatalf("%s: accepted", tc.name)
		}
		fmt.Fprintf(&got, "%s:\n\t%v\n", tc.name, err)
	}
	testgolden.Compare(t, "parse_errors.txt", got.String())
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
		t.Fatalf("two zones at one address: %v", err)
	}
	if got := len(config.plan.Listen); got != 4 {
		t.Errorf("%d endpoints in the merged plan, want 4", got)
	}
	var got strings.Builder
	for _, option := range []string{"interface dns0", "lease 2s", "sources any", "keep", "backend iptables nft", "backend nftables"} {
		err := config.add(parsed(20, "notrack 10.96.0.10 {\n "+option+"\n}"))
		if err == nil {
			t.Fatalf("%s: no conflict", option)
		}
		fmt.Fprintln(&got, err)
	}
	testgolden.Compare(t, "conflicts.txt", got.String())
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
