//go:build privileged

package integration

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/lab"
)

// askNames asks for so many names of the lab from a pod, each from a port of its own.
func askNames(t *testing.T, node *lab.Node, server netip.Addr, names int) {
	t.Helper()
	for i := range names {
		query := new(dns.Msg).SetQuestion(lab.HostName(i).Text, dns.TypeA)
		response, err := node.Pods[0].Namespace.Query(t.Context(), lab.UDP, server, query)
		if err != nil {
			t.Fatal(err)
		}
		if got := lab.Identify(response); got != lab.Trackless && i > 0 {
			t.Fatalf("%s answered %s", got, query.Question[0].Name)
		}
	}
}

// sumOf reads a sum from the metrics page of an instance, or of kube-dns.
func sumOf(t *testing.T, server *lab.Server, page, name string) float64 {
	t.Helper()
	now, err := server.Metrics(t.Context(), page)
	if err != nil {
		t.Fatal(err)
	}
	sum, _ := now.Sum(name)
	return sum
}

// An instance that replaces another one begins with its answers and flows, if the Corefiles
// are the same below the cache.
func TestReplacementIsWarm(t *testing.T) {
	const names = 300
	for _, tc := range []struct {
		name        string
		first, next func(corefile string) string
		log         string
		warm        bool // the answers
	}{
		{name: "the same Corefile", log: "warm start: took 300 answers", warm: true},
		{name: "another cache", next: func(c string) string { return strings.Replace(c, "cache 30", "cache 25", 1) }, log: "warm start: took 300 answers", warm: true},
		{name: "another upstream", next: func(c string) string { return strings.Replace(c, "forward . ", "forward . 192.0.2.99 ", 1) }, log: "left out: answers (foreign)"},
		{name: "the successor has warm off", next: func(c string) string { return strings.Replace(c, "sync 1s", "sync 1s\nwarm off", 1) }},
		{name: "the predecessor has warm off", first: func(c string) string { return strings.Replace(c, "sync 1s", "sync 1s\nwarm off", 1) }, log: "hands nothing over"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			node := newNode(t)
			before := wholeState(t, node)
			address := lab.ClusterDNS4
			start := func(n int, edit func(string) string) *lab.Server {
				corefile := instanceSpec{listen: []netip.Addr{address}}.corefile(n)
				if edit != nil {
					corefile = edit(corefile)
				}
				server, err := node.Serve(corefile)
				if err != nil {
					t.Fatal(err)
				}
				awaitAttached(t, server, metricsOf(n))
				return server
			}
			first := start(0, tc.first)
			askNames(t, node, address, names)
			flows := sumOf(t, first, metricsOf(0), "coredns_notrack_entries_avoided")
			next := start(1, tc.next)
			if tc.log != "" && !strings.Contains(next.Output(), tc.log) {
				t.Errorf("the log of the successor has no %q:\n%s", tc.log, next.Output())
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			taken := sumOf(t, next, metricsOf(1), "coredns_notrack_entries_avoided")
			if warm := taken >= flows*0.98; warm != (tc.warm || strings.HasPrefix(tc.log, "left out")) {
				t.Errorf("%v entries avoided, and %v before", taken, flows)
			}
			if tc.warm {
				entries := sumOf(t, next, metricsOf(1), "coredns_cache_misses_total")
				askNames(t, node, address, names)
				if misses := sumOf(t, next, metricsOf(1), "coredns_cache_misses_total") - entries; misses > 60 {
					t.Errorf("%v misses, of which some are our own checks", misses)
				}
			} else if n := sumOf(t, next, metricsOf(1), "coredns_cache_entries"); n > 10 {
				t.Errorf("%v answers from nowhere", n)
			}
			if err := next.Close(); err != nil {
				t.Fatal(err)
			}
			for _, s := range []*lab.Server{first, next} {
				if strings.Contains(s.Output(), "[ERROR]") {
					t.Errorf("errors in a log:\n%s", s.Output())
				}
			}
			asUninstalled(t, node, before)
			if sockets := runOn(t, node, "cat", "/proc/net/unix"); strings.Contains(sockets, "handover") {
				t.Errorf("sockets are left:\n%s", sockets)
			}
		})
	}
}
