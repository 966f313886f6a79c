//go:build privileged

package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
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
		response, err := node.Pods[0].Query(t.Context(), lab.UDP, server, query)
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

// A successor that does not start leaves the predecessor as it was: with its cache, attached.
func TestFailedReplacement(t *testing.T) {
	const names = 100
	for _, tc := range []struct {
		name string
		edit func(corefile string) string // of the successor
		says []string                     // its log
	}{
		{"it cannot open a listener", func(c string) string { return c + ".:53 {\nbind 192.0.2.77\nwhoami\n}\n" }, []string{"warm start: took", "cannot assign requested address"}},
		{"it cannot read its Corefile", func(c string) string { return strings.Replace(c, "cache 30", "cache 30 {\nno-such-option\n}", 1) }, []string{"no-such-option"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			node := newNode(t)
			before := wholeState(t, node)
			spec := instanceSpec{listen: []netip.Addr{lab.ClusterDNS4}}
			first := startBeside(t, node, spec, 0)
			askNames(t, node, lab.ClusterDNS4, names)
			next, err := node.Serve(tc.edit(spec.corefile(1)))
			if err != nil {
				t.Fatal(err)
			}
			select {
			case <-next.Done():
			case <-t.Context().Done():
				t.Fatal(t.Context().Err())
			}
			for _, line := range tc.says {
				if !strings.Contains(next.Output(), line) {
					t.Errorf("the log does not say %q:\n%s", line, next.Output())
				}
			}
			awaitAttached(t, first, metricsOf(0))
			entries := sumOf(t, first, metricsOf(0), "coredns_cache_misses_total")
			askNames(t, node, lab.ClusterDNS4, names)
			if misses := sumOf(t, first, metricsOf(0), "coredns_cache_misses_total") - entries; misses > names/2 {
				t.Errorf("%v misses, of which some are our own checks", misses)
			}
			answeredBy(t, node, lab.Trackless, lab.ClusterDNS4)
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			asUninstalled(t, node, before)
		})
	}
}

// A predecessor that hangs delays the start by the time of warm, and no longer.
func TestPredecessorHangs(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	spec := instanceSpec{listen: []netip.Addr{lab.ClusterDNS4}, options: []string{"warm 500ms"}}
	first := startBeside(t, node, spec, 0)
	stop(t, first)
	next, err := node.Serve(spec.corefile(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"nothing was taken from the instance", ".:53 on "} {
		eventually(t, line, func() error {
			if !strings.Contains(next.Output(), line) {
				return errors.New(next.Output())
			}
			return nil
		})
	}
	// Until the kernel gives its part of the connections to the other one.
	if err := first.Kill(); err != nil {
		t.Fatal(err)
	}
	awaitAttached(t, next, metricsOf(1))
	waited := sumOf(t, next, metricsOf(1), "coredns_notrack_warm_start_seconds")
	if waited < 0.5 || waited > 10 {
		t.Errorf("the start waited %v s for an instance that hangs", waited)
	}
	answeredBy(t, node, lab.Trackless, lab.ClusterDNS4)
}

// An instance without a predecessor asks for the names that the one before was asked for most,
// before its listeners open. The one before may have been killed.
func TestKilledInstanceLeavesNames(t *testing.T) {
	t.Parallel()
	const names = 200
	node := newNode(t)
	file := filepath.Join(t.TempDir(), "names")
	spec := instanceSpec{listen: []netip.Addr{lab.ClusterDNS4}, options: []string{"warm 2s names " + file}}
	first := startBeside(t, node, spec, 0)
	for range 2 { // a name that is asked once is not worth it
		askNames(t, node, lab.ClusterDNS4, names)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Fatalf("the file is %v, %v", info, err)
	}
	second := startBeside(t, node, spec, 0)
	recalled(t, second, names)
	if err := second.Kill(); err != nil {
		t.Fatal(err)
	}
	third := startBeside(t, node, spec, 0)
	recalled(t, third, names)
	if waited := sumOf(t, third, metricsOf(0), "coredns_notrack_warm_names_seconds"); waited == 0 {
		t.Errorf("the start waited %v s", waited)
	}
	before := sumOf(t, third, metricsOf(0), "coredns_cache_misses_total")
	askNames(t, node, lab.ClusterDNS4, names)
	if misses := sumOf(t, third, metricsOf(0), "coredns_cache_misses_total") - before; misses > names/10 {
		t.Errorf("%v misses of the first %d queries, of which some are our own checks", misses, names)
	}
	// A replacement takes the answers, and asks for no names.
	fourth := startBeside(t, node, spec, 1)
	if !strings.Contains(fourth.Output(), "warm start: took") || strings.Contains(fourth.Output(), "asked for the names") {
		t.Errorf("the log of the replacement:\n%s", fourth.Output())
	}
}

// recalled fails the test if the instance did not ask for so many names before it served.
func recalled(t *testing.T, server *lab.Server, names int) {
	t.Helper()
	asked := strings.Index(server.Output(), "asked for the names that were asked most")
	serving := strings.Index(server.Output(), "\n.:53 on ")
	if asked < 0 || serving < asked || !strings.Contains(server.Output(), fmt.Sprintf(": %d answered, 0 failed", names)) {
		t.Errorf("names asked for at %d, serving at %d:\n%s", asked, serving, server.Output())
	}
}

// Names of a dead upstream delay the start by at most five seconds.
func TestNamesOfADeadUpstream(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	file := filepath.Join(t.TempDir(), "names")
	spec := instanceSpec{listen: []netip.Addr{lab.ClusterDNS4}, options: []string{"warm 2s names " + file}}
	first := startBeside(t, node, spec, 0)
	for range 2 {
		askNames(t, node, lab.ClusterDNS4, 50)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	next, err := node.Serve(strings.Replace(spec.corefile(0), lab.UpstreamDNS4.String(), "198.51.100.99", 1))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"nothing was answered for 2s in the server block", "\n.:53 on "} {
		eventually(t, line, func() error {
			if !strings.Contains(next.Output(), line) {
				return errors.New(next.Output())
			}
			return nil
		})
	}
	if waited := sumOf(t, next, metricsOf(0), "coredns_notrack_warm_names_seconds"); waited < 2 {
		t.Errorf("the start waited %v s for an upstream that is dead", waited)
	}
}
