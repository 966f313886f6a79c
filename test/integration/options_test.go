//go:build privileged

package integration

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/trackless-dns/trackless/lab"
)

// begin starts the program and waits for a line of its log.
func begin(t *testing.T, node *lab.Node, corefile, line string) *lab.Server {
	t.Helper()
	server, err := node.Serve(corefile)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the log says "+line, func() error {
		if !strings.Contains(server.Output(), line) {
			return errNotYet{server.Output()}
		}
		return nil
	})
	return server
}

func metric(t *testing.T, server *lab.Server, name string) float64 {
	t.Helper()
	metrics, err := server.Metrics(t.Context(), metricsAddress)
	if err != nil {
		t.Fatal(err)
	}
	sum, ok := metrics.Sum(name)
	if !ok {
		t.Fatalf("no metric %s", name)
	}
	return sum
}

func TestDryRun(t *testing.T) {
	node := newNode(t)
	server := begin(t, node, corefile(notrackWith("dry-run"), "", listenAddresses(node)...), "dry-run: queries to")
	places := []*lab.Namespace{node.Pods[0].Namespace, node.Namespace}
	queries, atClusterIPs := 0, 0
	before := metric(t, server, "coredns_notrack_packets_total")
	for _, from := range places {
		for _, addr := range listenAddresses(node) {
			who, err := ask(t, from, addr, lab.UDP)
			if err != nil || who != lab.KubeDNS {
				t.Errorf("%s from %s: answered by %q, %v; want kube-dns", addr, from.Name(), who, err)
			}
			queries++
			if addr != lab.LinkLocalDNS4 {
				atClusterIPs++ // the failover table gives the others another destination
			}
		}
	}
	if got := metric(t, server, "coredns_notrack_packets_total") - before; got != float64(queries) {
		t.Errorf("%g packets would have been untracked, want %d", got, queries)
	}
	if entries := dnsEntries(t, node); len(entries) < atClusterIPs {
		t.Errorf("%d queries left %d entries:\n%s", atClusterIPs, len(entries), strings.Join(entries, ""))
	}
	if attached := metric(t, server, "coredns_notrack_attached"); attached != 0 {
		t.Errorf("%g addresses are attached in a dry run", attached)
	}
	if metric(t, server, "coredns_notrack_dry_run") != 1 {
		t.Error("no metric says that it is a dry run")
	}

	// The end of the dry run is the beginning of the real one, and back.
	if err := server.Reload(corefile(steady, "", listenAddresses(node)...)); err != nil {
		t.Fatal(err)
	}
	servedBy(t, node, lab.Trackless)
	if err := server.Reload(corefile(notrackWith("dry-run"), "", listenAddresses(node)...)); err != nil {
		t.Fatal(err)
	}
	servedBy(t, node, lab.KubeDNS)
	eventually(t, "nothing is attached", func() error {
		now, err := server.Metrics(t.Context(), metricsAddress)
		if err != nil {
			return err // the listener is reopened
		}
		if attached, _ := now.Sum("coredns_notrack_attached"); attached != 0 {
			return fmt.Errorf("%g addresses are", attached)
		}
		return nil
	})
}

// servedBy waits until pods and the node are answered by somebody at every
// address.
func servedBy(t *testing.T, node *lab.Node, who lab.Responder) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s answers everybody", who), func() error {
		for _, from := range []*lab.Namespace{node.Pods[0].Namespace, node.Namespace} {
			for _, addr := range listenAddresses(node) {
				for _, protocol := range []lab.Protocol{lab.UDP, lab.TCP} {
					if got := probe(t, from, addr, protocol); got != who {
						return fmt.Errorf("%s %s from %s: answered by %q", protocol, addr, from.Name(), got)
					}
				}
			}
		}
		return nil
	})
}

func TestKeepLeavesTheAddresses(t *testing.T) {
	for _, tc := range []struct {
		name, notrack string
		stay          bool
	}{
		{"keep", notrackWith("keep"), true},
		{"without", steady, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node := newNode(t)
			server := serve(t, node, corefile(tc.notrack, "", listenAddresses(node)...))
			if err := server.Close(); err != nil {
				t.Fatal(err)
			}
			addresses := run(t, node.Namespace, "ip", "-o", "address")
			for _, a := range listenAddresses(node) {
				if got := strings.Contains(addresses, " "+a.String()+"/"); got != tc.stay {
					t.Errorf("%s is on the node after the stop: %t, want %t", a, got, tc.stay)
				}
			}
			// Rules never outlive the process, and without them an address
			// that stays does no harm.
			if tables := run(t, node.Namespace, "nft", "list", "tables"); instanceTable.MatchString(tables) {
				t.Errorf("rules are left:\n%s", tables)
			}
			servedBy(t, node, lab.KubeDNS)
		})
	}
}

func TestFailoverOption(t *testing.T) {
	for _, tc := range []struct {
		name    string
		notrack string
		both    bool // listen at the ClusterIPs, too
		forward func(*lab.Node) string
		line    string // of the log
		target  string // where the failover table leads; empty for no table
	}{
		{"auto, to a listen address of a Service", steady, true, func(node *lab.Node) string { return node.DNSPod.Addrs[0].String() }, "attached: ", "10.96.0.10"},
		{"auto, to a Service", steady, false, func(*lab.Node) string { return lab.UpstreamDNS4.String() }, "attached: ", "10.96.0.99"},
		{"auto, to a pod", steady, false, func(node *lab.Node) string { return node.DNSPod.Addrs[0].String() }, "no failover for 169.254.20.10", ""},
		{"off", notrackWith("failover off"), true, func(*lab.Node) string { return lab.UpstreamDNS4.String() }, "attached: ", ""},
		{"an address, where auto finds none", notrackWith("failover 10.96.0.99"), false, func(node *lab.Node) string { return node.DNSPod.Addrs[0].String() }, "attached: ", "10.96.0.99"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node := newNode(t)
			listen := []netip.Addr{lab.LinkLocalDNS4}
			if tc.both {
				listen = listenAddresses(node)
			}
			text := strings.Replace(corefile(tc.notrack, "", listen...), "forward . "+lab.UpstreamDNS4.String(), "forward . "+tc.forward(node), 1)
			server := begin(t, node, text, tc.line)
			answeredBy(t, node, lab.Trackless, listen...)
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			w := whoAnswers{node.Pods[0].Namespace, lab.KubeDNS, silence}
			if tc.target != "" {
				w.linkLocal = lab.KubeDNS
			}
			eventually(t, "the fallback", func() error { return w.check(t, node) })
			if tables := run(t, node.Namespace, "nft", "list", "tables"); strings.Contains(tables, "trackless-failover") != (tc.target != "") {
				t.Fatalf("want a failover table: %t:\n%s", tc.target != "", tables)
			}
			if tc.target == "" {
				return
			}
			if table := run(t, node.Namespace, "nft", "list", "table", "inet", "trackless-failover"); !strings.Contains(table, "ip daddr set "+tc.target+"\n") {
				t.Errorf("it does not lead to %s:\n%s", tc.target, table)
			}
		})
	}
}

// How a hang ends under each lease. What counts as hung is stopped.
func TestLeaseOption(t *testing.T) {
	for _, tc := range []struct {
		name, notrack string
		rule          string        // in the table, empty for none that renews
		hung          lab.Responder // who answers then
	}{
		{"the default", "notrack", "update @live4 { ip saddr timeout 1s }", lab.KubeDNS},
		{"500ms", notrackWith("lease 500ms"), "update @live4 { ip saddr timeout 500ms }", lab.KubeDNS},
		{"off", notrackWith("lease off"), "", silence},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node := newNode(t)
			server := serve(t, node, corefile(tc.notrack, "", listenAddresses(node)...))
			servedBy(t, node, lab.Trackless)
			rules := run(t, node.Namespace, "nft", "list", "table", "inet", tableName(t, node))
			if !strings.Contains(rules, tc.rule) || tc.rule == "" && strings.Contains(rules, "update @live") {
				t.Errorf("want the rule %q in\n%s", tc.rule, rules)
			}
			stop(t, server)
			// Whatever was answered last before the stop, the lease of that is
			// over well before this many questions have gone unanswered.
			w := whoAnswers{node.Pods[0].Namespace, tc.hung, tc.hung}
			if tc.hung == silence {
				for range 3 {
					if err := w.check(t, node); err != nil {
						t.Errorf("while stopped: %v", err)
					}
				}
			} else {
				servedBy(t, node, tc.hung)
			}
			if err := server.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			servedBy(t, node, lab.Trackless)
			// Death ends the rules with any lease.
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			servedBy(t, node, lab.KubeDNS)
		})
	}
}
