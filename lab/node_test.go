//go:build privileged

package lab_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/kubeproxy"
	"github.com/trackless-dns/trackless/lab/labtest"
	"github.com/trackless-dns/trackless/lab/load"
)

// service is a name that kube-dns has.
const service = "svc-100-0-7.lab.svc.cluster.local."

func ask(t *testing.T, from *lab.Namespace, protocol lab.Protocol, server netip.Addr, timeout time.Duration) (*dns.Msg, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	return from.Query(ctx, protocol, server, new(dns.Msg).SetQuestion(service, dns.TypeA))
}

func entries(t *testing.T, node *lab.Node) []conntrack.Entry {
	t.Helper()
	conn, err := conntrack.Dial(&conntrack.Config{NetNS: node.Namespace.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	var all []conntrack.Entry
	err = conn.Dump(conntrack.Filter{}, func(entry *conntrack.Entry) error {
		all = append(all, *entry)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestNodeLeadsDNSThroughKubeProxy(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		options lab.Options
	}{
		{"default", lab.Options{}},
		{"addressless veths", lab.Options{AddresslessVeths: true}},
		{"without IPv6", lab.Options{WithoutIPv6: true}},
		{"one pod", lab.Options{Pods: 1}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			node := labtest.NewNode(t, test.options)
			if seen := entries(t, node); len(seen) != 0 {
				t.Errorf("a new node has %d conntrack entries already: %v", len(seen), seen)
			}
			asked := 0
			for i, target := range node.ClusterDNS() {
				for _, protocol := range []lab.Protocol{lab.UDP, lab.TCP} {
					for _, pod := range node.Pods {
						checkAnswer(t, node, pod.Namespace, protocol, target, pod.Addrs[i])
						asked++
					}
					// What the node itself asks is masqueraded: kube-dns sees
					// the address that the node has towards the pod.
					checkAnswer(t, node, node.Namespace, protocol, target, netip.Addr{})
					asked++
				}
			}
			if seen := entries(t, node); len(seen) != asked {
				t.Errorf("%d entries after %d queries", len(seen), asked)
			}
		})
	}
}

// checkAnswer asks and checks that kube-dns answered, and that the entry of
// this query shows kube-proxy's work. The zero client stands for masquerade.
func checkAnswer(t *testing.T, node *lab.Node, from *lab.Namespace, protocol lab.Protocol, target, client netip.Addr) {
	t.Helper()
	before := entries(t, node)
	response, err := ask(t, from, protocol, target, 5*time.Second)
	if err != nil {
		t.Error(err)
		return
	}
	if by := lab.Identify(response); by != lab.KubeDNS || len(response.Answer) != 1 {
		t.Errorf("%s over %s: %d answers from %s, want one of %s", target, protocol, len(response.Answer), by, lab.KubeDNS)
	}
	known := make(map[conntrack.Tuple]bool)
	for _, entry := range before {
		known[entry.Original] = true
	}
	for _, entry := range entries(t, node) {
		if known[entry.Original] {
			continue
		}
		masqueraded := entry.NAT()&conntrack.NATSource != 0
		switch {
		case entry.Original.Dst != target || entry.Reply.Src != node.DNSPod.Addrs[0] && entry.Reply.Src != node.DNSPod.Addrs[len(node.DNSPod.Addrs)-1]:
			t.Errorf("%s over %s: entry from %s to %s, answered by %s", target, protocol, entry.Original.Src, entry.Original.Dst, entry.Reply.Src)
		case masqueraded == client.IsValid():
			t.Errorf("%s over %s from %s: masqueraded is %t", target, protocol, from.Name(), masqueraded)
		case client.IsValid() && entry.Reply.Dst != client:
			t.Errorf("%s over %s: kube-dns saw %s, not the pod %s", target, protocol, entry.Reply.Dst, client)
		}
	}
}

func TestKubeProxyFollowsItsServices(t *testing.T) {
	t.Parallel()
	node := labtest.NewNode(t, lab.Options{})
	withoutEndpoints := make([]kubeproxy.Service, len(node.Services))
	for i, service := range node.Services {
		withoutEndpoints[i] = kubeproxy.Service{Name: service.Name, ClusterIPs: service.ClusterIPs}
	}
	unallocated := netip.MustParseAddr("10.96.0.77")
	const unanswered = 300 * time.Millisecond

	steps := []struct {
		name   string
		change func() error
		target netip.Addr
		want   error // of a UDP query from a pod; nil: an answer
	}{
		{"as built", nil, lab.ClusterDNS4, nil},
		{"upstream Service", nil, lab.UpstreamDNS4, nil},
		{"unallocated ClusterIP is dropped", nil, unallocated, context.DeadlineExceeded},
		{"no endpoints are rejected", func() error { return node.KubeProxy.Apply(withoutEndpoints...) }, lab.ClusterDNS4, unix.ECONNREFUSED},
		{"endpoints again", func() error { return node.KubeProxy.Apply(node.Services...) }, lab.ClusterDNS4, nil},
		{"no rules, nobody there", node.KubeProxy.Remove, lab.ClusterDNS4, context.DeadlineExceeded},
		{"rules again", func() error { return node.KubeProxy.Apply(node.Services...) }, lab.ClusterDNS4, nil},
	}
	for _, step := range steps {
		if step.change != nil {
			if err := step.change(); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
		}
		timeout := 5 * time.Second
		if errors.Is(step.want, context.DeadlineExceeded) {
			timeout = unanswered
		}
		_, err := ask(t, node.Pods[0].Namespace, lab.UDP, step.target, timeout)
		if step.want == nil && err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		if step.want != nil && !errors.Is(err, step.want) && (timeout != unanswered || !errors.Is(err, os.ErrDeadlineExceeded)) {
			t.Errorf("%s: error %v, want %v", step.name, err, step.want)
		}
	}
}

func TestWatchTellsListenFromUpstream(t *testing.T) {
	t.Parallel()
	node := labtest.NewNode(t, lab.Options{})
	samples := 0
	watch, err := node.Watch(lab.WatchOptions{OnSample: func(context.Context, *lab.TableSample) { samples++ }})
	if err != nil {
		t.Fatal(err)
	}
	for target, times := range map[netip.Addr]int{lab.ClusterDNS4: 3, lab.UpstreamDNS4: 2, node.DNSPod.Addrs[0]: 1} {
		for range times {
			if _, err := ask(t, node.Pods[0].Namespace, lab.UDP, target, 5*time.Second); err != nil {
				t.Fatal(err)
			}
		}
	}
	got, err := watch.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if got.Samples != samples || samples == 0 {
		t.Errorf("%d samples, but %d were announced", got.Samples, samples)
	}
	if last := got.Course[len(got.Course)-1]; len(got.Course) != samples || last.Entries != 6 || last.DNSEntries != 3 || last.UpstreamEntries != 2 || last.Port53Entries != 6 {
		t.Errorf("%d samples, the last is %+v", len(got.Course), last)
	}
	if got.Table == nil || got.Table.Entries != 6 || got.Table.DNS.Entries != 6 || got.Rise.Drop != 0 {
		t.Errorf("table %+v, counters rose by %+v", got.Table, got.Rise)
	}
	got.Samples, got.Course, got.Table, got.Rise = 0, nil, nil, conntrack.CPUStats{}
	want := lab.TableFigures{
		EntriesPeak: 6, EntriesEnd: 6, DNSEntriesPeak: 3, DNSEntriesEnd: 3, UpstreamEntriesPeak: 2, UpstreamEntriesEnd: 2,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("figures (-want +got):\n%s", diff)
	}
	if err := node.Flush(); err != nil {
		t.Error(err)
	}
	if left := entries(t, node); len(left) != 0 {
		t.Errorf("left after Flush: %v", left)
	}
}

func TestLoadEndsWithItsContext(t *testing.T) {
	t.Parallel()
	node := labtest.NewNode(t, lab.Options{})
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	// An address that drops everything, so that queries are under way when
	// the context ends, and would be for their whole ten minutes.
	queries := load.Load{
		Queries: 100_000, Targets: []netip.Addr{netip.MustParseAddr("10.96.0.77")}, Timeout: 10 * time.Minute,
		Progress: func(int) { cancel(enough) },
	}
	begin := time.Now()
	if _, err := load.Run(ctx, node, queries); !errors.Is(err, enough) {
		t.Errorf("Run returned %v, want %v", err, enough)
	}
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("it took %s, as if it had waited for answers", took)
	}
}

// Whatever way a node comes to its end, no namespace stays open and no process
// runs on. It counts those of the whole process, so it does not run beside
// others.
func TestNodeLeavesNothing(t *testing.T) {
	labtest.Require(t)
	program := labtest.Program(t)
	build := func(ctx context.Context, program string) (*lab.Node, error) {
		return lab.NewNode(ctx, lab.Options{Program: program, WithoutIPv6: !lab.HasIPv6()})
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	tests := []struct {
		name string
		run  func() error
		want string // in the error
	}{
		{"closed", func() error {
			node, err := build(t.Context(), program)
			if err != nil {
				return err
			}
			return errors.Join(node.Close(), node.Close())
		}, ""},
		{"closed with a server running", func() error {
			node, err := build(t.Context(), program)
			if err != nil {
				return err
			}
			_, err = node.Serve(".:5353 {\n whoami\n}\n")
			return errors.Join(err, node.Close())
		}, ""},
		{"server ends at once", func() error { _, err := build(t.Context(), "/bin/false"); return err }, "ended before"},
		{"no such program", func() error { _, err := build(t.Context(), "/nonexistent"); return err }, "no such file"},
		{"context already over", func() error { _, err := build(cancelled, program); return err }, "context canceled"},
		{"too many pods", func() error { _, err := lab.NewNode(t.Context(), lab.Options{Pods: 1000}); return err }, "1000 pods"},
		{"panic inside a namespace", func() (err error) {
			node, err := build(t.Context(), program)
			if err != nil {
				return err
			}
			defer func() {
				if cause := recover(); cause == nil {
					t.Error("the panic was swallowed")
				}
			}()
			defer func() { err = node.Close() }()
			return node.Pods[0].Do(func() error { panic("on purpose") })
		}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			namespaces, children := heldNamespaces(t), childrenOf(t, os.Getpid())
			err := test.run()
			if test.want == "" && err != nil {
				t.Error(err)
			}
			if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
			if held := heldNamespaces(t); len(held) != len(namespaces) {
				t.Errorf("namespaces held afterwards: %v, before: %v", held, namespaces)
			}
			if left := childrenOf(t, os.Getpid()); len(left) != len(children) {
				t.Errorf("processes running afterwards: %v, before: %v", left, children)
			}
		})
	}
}

func TestNamespaceCloseGivesUpTheDescriptor(t *testing.T) {
	labtest.Require(t)
	before := heldNamespaces(t)
	ns, err := lab.NewNamespace("short-lived")
	if err != nil {
		t.Fatal(err)
	}
	if held := heldNamespaces(t); len(held) != len(before)+1 {
		t.Errorf("%d namespaces held while one more is open, had %d", len(held), len(before))
	}
	for range 2 {
		if err := ns.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if held := heldNamespaces(t); len(held) != len(before) {
		t.Errorf("namespaces held after Close: %v, before: %v", held, before)
	}
}

// heldNamespaces lists the network namespaces that this process holds by a
// descriptor.
func heldNamespaces(t *testing.T) []string {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var held []string
	for _, fd := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(target, "net:") {
			held = append(held, target)
		}
	}
	return held
}

// childrenOf lists the processes whose parent is the given one.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var children []int
	for _, path := range processes {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// The name, in parentheses, may itself hold anything; see proc(5).
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		if len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			child, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			children = append(children, child)
		}
	}
	return children
}
