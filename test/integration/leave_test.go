package integration

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/nodestate"
	"github.com/trackless-dns/trackless/lab"
)

// instanceSpec is an instance that is started beside others.
type instanceSpec struct {
	listen  []netip.Addr
	options []string // of notrack
}

// corefile has a metrics page of its own, the n-th.
func (i instanceSpec) corefile(n int) string {
	options := i.options
	if !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "sync ") }) {
		options = append(slices.Clone(options), "sync 1s")
	}
	return strings.ReplaceAll(corefile(notrackWith(options...), "", i.listen...), metricsAddress, metricsOf(n))
}

func metricsOf(n int) string { return fmt.Sprintf("127.0.0.1:%d", 9253+n) }

// onNode are the listen addresses that are on the node.
func onNode(t *testing.T, node *lab.Node) (out []netip.Addr) {
	t.Helper()
	shown := runOn(t, node, "ip", "-o", "address")
	for _, a := range append(listenAddresses(node), otherLinkLocal) {
		if strings.Contains(shown, " "+a.String()+"/") {
			out = append(out, a)
		}
	}
	return out
}

var otherLinkLocal = netip.MustParseAddr("169.254.20.11")

// Whoever leaves takes along what none of those that stay asks for, and the last one
// leaves the failover table alone, which `rules remove` takes away.
func TestWhoLeavesTakesWhatNobodyElseAsksFor(t *testing.T) {
	cluster4, linkLocal, cluster6 := lab.ClusterDNS4, lab.LinkLocalDNS4, lab.ClusterDNS6
	both := instanceSpec{listen: []netip.Addr{linkLocal, cluster4, cluster6}}
	clusterIP := instanceSpec{listen: []netip.Addr{cluster4}}
	linkLocalOnly := instanceSpec{listen: []netip.Addr{linkLocal}}
	with := func(i instanceSpec, options ...string) instanceSpec { i.options = options; return i }
	for _, tc := range []struct {
		name   string
		starts []instanceSpec
		ends   []int // in this order
		killed int   // how many of them are killed, the first ones
	}{
		{"mode both, then cluster-ip", []instanceSpec{both, clusterIP}, []int{0, 1}, 0},
		{"cluster-ip, then mode both, which goes back", []instanceSpec{clusterIP, both}, []int{1, 0}, 0},
		{"nothing in common", []instanceSpec{linkLocalOnly, clusterIP}, []int{0, 1}, 0},
		{"another link-local address", []instanceSpec{linkLocalOnly, {listen: []netip.Addr{otherLinkLocal}}}, []int{0, 1}, 0},
		{"three of them", []instanceSpec{both, linkLocalOnly, clusterIP}, []int{0, 1, 2}, 0},
		{"killed, with one of fewer addresses beside it", []instanceSpec{both, clusterIP}, []int{0, 1}, 1},
		{"iptables", []instanceSpec{with(both, "backend iptables nft", "lease 1s"), with(clusterIP, "backend iptables nft", "lease 1s")}, []int{0, 1}, 0},
		{"iptables legacy, then nftables", []instanceSpec{with(both, "backend iptables legacy", "lease 1s"), clusterIP}, []int{0, 1}, 0},
		{"killed, iptables", []instanceSpec{with(both, "backend iptables nft", "lease 1s"), with(clusterIP, "backend iptables nft", "lease 1s")}, []int{0, 1}, 1},
		{"another interface", []instanceSpec{linkLocalOnly, with(clusterIP, "interface dns0")}, []int{0, 1}, 0},
		{"other sources and uplinks", []instanceSpec{with(both, "sources 10.244.0.0/16"), with(clusterIP, "uplinks uplink")}, []int{0, 1}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			node := newNode(t)
			if strings.Contains(tc.name, "iptables") {
				// The table raw stays, empty, once anybody has asked for it.
				for _, program := range []string{"iptables-legacy", "ip6tables-legacy", "iptables-nft", "ip6tables-nft"} {
					for _, chain := range []string{"PREROUTING", "OUTPUT"} {
						runOn(t, node, program, "-t", "raw", "-A", chain)
						runOn(t, node, program, "-t", "raw", "-D", chain, "1")
					}
				}
			}
			before := wholeState(t, node)
			var servers []*lab.Server
			for n, spec := range tc.starts {
				server, err := node.Serve(spec.corefile(n))
				if err != nil {
					t.Fatal(err)
				}
				awaitAttached(t, server, metricsOf(n))
				servers = append(servers, server)
			}
			for i, n := range tc.ends {
				var err error
				if i < tc.killed {
					err = servers[n].Kill()
				} else {
					err = servers[n].Close()
				}
				if err != nil {
					t.Fatal(err)
				}
				var asked []netip.Addr
				for _, m := range tc.ends[i+1:] {
					asked = append(asked, tc.starts[m].listen...)
				}
				same := func() error {
					got := onNode(t, node)
					for _, a := range got {
						if !slices.Contains(asked, a) {
							return fmt.Errorf("%s is on the node still", a)
						}
					}
					for _, a := range asked {
						if !slices.Contains(got, a) {
							t.Fatalf("%s is gone, which one that stays needs", a)
						}
					}
					return nil
				}
				if i < tc.killed {
					eventually(t, "what a killed instance left is gone", same)
				} else if err := same(); err != nil {
					t.Errorf("after the end of the %d.: %v", n+1, err)
				}
				for _, m := range tc.ends[i+1:] {
					answeredBy(t, node, lab.Trackless, tc.starts[m].listen...)
				}
			}
			for _, s := range servers {
				if strings.Contains(s.Output(), "[ERROR]") {
					t.Errorf("errors in a log:\n%s", s.Output())
				}
			}
			asUninstalled(t, node, before)
		})
	}
}

// asUninstalled finds nothing but the failover table on a node, and nothing at all
// after `rules remove`.
func asUninstalled(t *testing.T, node *lab.Node, before nodestate.State) {
	t.Helper()
	now := state(t, node)
	if diff := before.Diff(now); diff != "" {
		t.Errorf("left behind besides the failover table:\n%s", diff)
	}
	if out, status := trackless(t, node, "rules", "remove"); status != 0 {
		t.Errorf("rules remove: status %d\n%s", status, out)
	}
	if diff := before.Diff(wholeState(t, node)); diff != "" {
		t.Errorf("left behind after `rules remove`:\n%s", diff)
	}
}
