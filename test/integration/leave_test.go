//go:build privileged

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
	if testing.Short() {
		t.Skip("the program under test is not the race detector's")
	}
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
				servers = append(servers, startBeside(t, node, spec, n))
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
				same := func() error { return sameAddresses(onNode(t, node), asked) }
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

// A reload that drops an address takes it away, unless another instance serves it.
func TestReloadTakesWhatNobodyElseAsksFor(t *testing.T) {
	both := instanceSpec{listen: []netip.Addr{lab.LinkLocalDNS4, lab.ClusterDNS4}}
	clusterIP := instanceSpec{listen: []netip.Addr{lab.ClusterDNS4}}
	for _, tc := range []struct {
		name  string
		other bool // instance with both addresses
	}{{"alone", false}, {"another serves it", true}} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			node := newNode(t)
			before := wholeState(t, node)
			server := startBeside(t, node, both, 0)
			var other *lab.Server
			if tc.other {
				other = startBeside(t, node, both, 1)
			}
			if err := server.Reload(clusterIP.corefile(0)); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the reload is through", func() error {
				page, err := server.Metrics(t.Context(), metricsOf(0))
				if err == nil && len(page["coredns_notrack_attached"].GetMetric()) != 1 {
					err = fmt.Errorf("%v", page["coredns_notrack_attached"])
				}
				return err
			})
			want := clusterIP.listen
			if tc.other {
				want = both.listen
				answeredBy(t, node, lab.Trackless, both.listen...)
			}
			eventually(t, "addresses after the reload", func() error { return sameAddresses(onNode(t, node), want) })
			if tc.other {
				if err := other.Close(); err != nil {
					t.Fatal(err)
				}
				if err := sameAddresses(onNode(t, node), clusterIP.listen); err != nil {
					t.Errorf("after the other one's end: %v", err)
				}
			}
			if err := server.Close(); err != nil {
				t.Fatal(err)
			}
			asUninstalled(t, node, before)
		})
	}
}

// A server that is none of ours has come to listen at an address, as node-cache does
// before Trackless is uninstalled: it keeps that address.
func TestAnotherServerKeepsItsAddress(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	before := wholeState(t, node)
	server := startBeside(t, node, instanceSpec{listen: listenAddresses(node)}, 0)
	other, err := node.Serve(fmt.Sprintf(".:53 {\nbind %s\nforward . %s\n}\n", lab.LinkLocalDNS4, lab.UpstreamDNS4))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other server listens", func() error {
		pids := runOn(t, node, "ss", "-lunpH", "src", lab.LinkLocalDNS4.String()+":53")
		if !strings.Contains(pids, fmt.Sprintf("pid=%d,", other.PID())) {
			return fmt.Errorf("pid %d is not among\n%s", other.PID(), pids)
		}
		return nil
	})
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"the end of Trackless", "`rules remove`"} {
		if err := sameAddresses(onNode(t, node), []netip.Addr{lab.LinkLocalDNS4}); err != nil {
			t.Errorf("after %s: %v", what, err)
		}
		if out, status := trackless(t, node, "rules", "remove"); status != 0 {
			t.Errorf("rules remove: status %d\n%s", status, out)
		}
	}
	answeredBy(t, node, lab.KubeDNS, lab.LinkLocalDNS4) // which it forwards to; the failover table is gone
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if out, status := trackless(t, node, "rules", "remove"); status != 0 {
		t.Errorf("rules remove: status %d\n%s", status, out)
	}
	if diff := before.Diff(wholeState(t, node)); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

// startBeside starts the n-th instance and waits until it is attached.
func startBeside(t *testing.T, node *lab.Node, spec instanceSpec, n int) *lab.Server {
	t.Helper()
	server, err := node.Serve(spec.corefile(n))
	if err != nil {
		t.Fatal(err)
	}
	awaitAttached(t, server, metricsOf(n))
	return server
}

func sameAddresses(got, want []netip.Addr) error {
	got, want = slices.Clone(got), slices.Clone(want)
	slices.SortFunc(got, netip.Addr.Compare)
	slices.SortFunc(want, netip.Addr.Compare)
	if want = slices.Compact(want); !slices.Equal(got, want) {
		return fmt.Errorf("%v are on the node, want %v", got, want)
	}
	return nil
}
