//go:build privileged

package integration

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/lab"
)

// who asks each address over both protocols from one place.
func ask(t *testing.T, from *lab.Namespace, addr netip.Addr, protocol lab.Protocol) (lab.Responder, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	response, err := from.Query(ctx, protocol, addr, new(dns.Msg).SetQuestion("svc-1-2-3.lab.svc.cluster.local.", dns.TypeA))
	if err != nil {
		return "", err
	}
	return lab.Identify(response), nil
}

// dnsEntries are the lines of `conntrack -L` that have a listen address.
func dnsEntries(t *testing.T, node *lab.Node) []string {
	t.Helper()
	var out []string
	for _, family := range []string{"ipv4", "ipv6"} {
		for line := range strings.Lines(run(t, node.Namespace, "conntrack", "-L", "-f", family)) {
			for _, a := range listenAddresses(node) {
				if strings.Contains(line, "="+a.String()+" ") {
					out = append(out, line)
				}
			}
		}
	}
	return out
}

func TestDigLeavesNoEntry(t *testing.T) {
	node := newNode(t)
	serve(t, node, corefile(steady, "", listenAddresses(node)...))
	for _, addr := range listenAddresses(node) {
		for _, from := range []*lab.Namespace{node.Pods[0].Namespace, node.Pods[1].Namespace, node.Namespace} {
			for _, flag := range []string{"+notcp", "+tcp"} {
				for _, qtype := range []string{"A", "AAAA"} {
					name := fmt.Sprintf("dig %s %s @%s from %s", flag, qtype, addr, from.Name())
					out := run(t, from, "dig", flag, "+tries=1", "+time=5", "@"+addr.String(), "svc-4-5-6.lab.svc.cluster.local.", qtype)
					if !strings.Contains(out, "status: NOERROR") || !strings.Contains(out, "ANSWER: 1") {
						t.Errorf("%s:\n%s", name, out)
					}
				}
			}
		}
	}
	if entries := dnsEntries(t, node); len(entries) > 0 {
		t.Errorf("entries with a listen address:\n%s", strings.Join(entries, ""))
	}
}

// Without rules the same queries leave entries: the test above can fail.
func TestWithoutRulesThereAreEntries(t *testing.T) {
	node := newNode(t)
	if who, err := ask(t, node.Pods[0].Namespace, lab.ClusterDNS4, lab.UDP); who != lab.KubeDNS || err != nil {
		t.Fatalf("answered by %s, %v", who, err)
	}
	if len(dnsEntries(t, node)) == 0 {
		t.Error("a query through kube-proxy left no entry")
	}
}

// instanceTable is the table of a process.
var instanceTable = regexp.MustCompile(`trackless-[0-9a-f]{8}`)

func TestKillFallsBackToKubeDNS(t *testing.T) {
	node := newNode(t)
	server := serve(t, node, corefile(steady, "", listenAddresses(node)...))
	pod := node.Pods[0].Namespace
	if who, err := ask(t, pod, lab.ClusterDNS4, lab.UDP); who != lab.Trackless || err != nil {
		t.Fatalf("before: answered by %q, %v", who, err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the rules go with the process", func() error {
		if tables := run(t, node.Namespace, "nft", "list", "tables"); instanceTable.MatchString(tables) {
			return fmt.Errorf("left behind: %s", tables)
		}
		return nil
	})
	for _, addr := range listenAddresses(node) {
		for _, protocol := range []lab.Protocol{lab.UDP, lab.TCP} {
			for _, from := range []*lab.Namespace{pod, node.Namespace} {
				if who, err := ask(t, from, addr, protocol); who != lab.KubeDNS || err != nil {
					t.Errorf("%s %s from %s: answered by %q, %v", protocol, addr, from.Name(), who, err)
				}
			}
		}
	}
	// The next instance takes the addresses over that the killed one left.
	serve(t, node, corefile(steady, "", listenAddresses(node)...))
	if who, err := ask(t, pod, lab.ClusterDNS4, lab.UDP); who != lab.Trackless || err != nil {
		t.Errorf("after the restart: answered by %q, %v", who, err)
	}
}

func TestStopLeavesNothing(t *testing.T) {
	for _, tc := range []struct {
		name   string
		signal syscall.Signal
	}{{"SIGTERM", syscall.SIGTERM}, {"SIGINT", syscall.SIGINT}, {"SIGQUIT", syscall.SIGQUIT}} {
		t.Run(tc.name, func(t *testing.T) {
			node := newNode(t)
			before := state(t, node)
			server := serve(t, node, corefile(steady, "", listenAddresses(node)...))
			if before.Diff(state(t, node)) == "" {
				t.Fatal("a start changed nothing")
			}
			if err := server.Signal(tc.signal); err != nil {
				t.Fatal(err)
			}
			select {
			case <-server.Done():
			case <-time.After(patience):
				t.Fatalf("still running:\n%s", server.Output())
			}
			if diff := before.Diff(state(t, node)); diff != "" {
				t.Errorf("left behind:\n%s", diff)
			}
			if strings.Contains(server.Output(), "[ERROR]") {
				t.Errorf("errors in the log:\n%s", server.Output())
			}
			if who, err := ask(t, node.Pods[0].Namespace, lab.ClusterDNS4, lab.UDP); who != lab.KubeDNS || err != nil {
				t.Errorf("answered by %q, %v", who, err)
			}
		})
	}
}

func TestTwoInstancesOnOneNode(t *testing.T) {
	node := newNode(t)
	text := corefile(steady, "", listenAddresses(node)...)
	first := serve(t, node, text)
	second, err := node.Serve(strings.ReplaceAll(text, metricsAddress, "127.0.0.1:9254"))
	if err != nil {
		t.Fatal(err)
	}
	awaitAttached(t, second, "127.0.0.1:9254")
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	addresses := run(t, node.Namespace, "ip", "-o", "address")
	for _, a := range listenAddresses(node) {
		if !strings.Contains(addresses, " "+a.String()+"/") {
			t.Errorf("the end of the second took address %s of the first", a)
		}
	}
	if who, err := ask(t, node.Pods[0].Namespace, lab.ClusterDNS4, lab.UDP); who != lab.Trackless || err != nil {
		t.Errorf("answered by %q, %v", who, err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
}

func TestAHangFallsBackAndComesBack(t *testing.T) {
	node := newNode(t)
	server := serve(t, node, corefile("notrack", "", listenAddresses(node)...))
	answeredBy := func(want lab.Responder) {
		t.Helper()
		for _, addr := range listenAddresses(node) {
			for _, protocol := range []lab.Protocol{lab.UDP, lab.TCP} {
				for _, from := range []*lab.Namespace{node.Pods[0].Namespace, node.Namespace} {
					eventually(t, fmt.Sprintf("%s %s from %s is answered by %s", protocol, addr, from.Name(), want), func() error {
						ctx, cancel := context.WithTimeout(t.Context(), time.Second)
						defer cancel()
						response, err := from.Query(ctx, protocol, addr, new(dns.Msg).SetQuestion("svc-1-2-3.lab.svc.cluster.local.", dns.TypeA))
						if err != nil {
							return err
						}
						if who := lab.Identify(response); who != want {
							return fmt.Errorf("answered by %s", who)
						}
						return nil
					})
				}
			}
		}
	}
	answeredBy(lab.Trackless)
	stop(t, server)
	answeredBy(lab.KubeDNS)
	if err := server.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	answeredBy(lab.Trackless)
	// An answer that waited in a socket renews the lease before its reconciler has
	// had the time to look at the clock.
	eventually(t, "the lapse is counted", func() error {
		now, err := server.Metrics(t.Context(), metricsAddress)
		if err != nil {
			return err
		}
		if lapses, _ := now.Sum("coredns_notrack_lease_lapses_total"); lapses == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	// The log has one line for its beginning and one for its end, whatever the number
	// of addresses, also for those lapses that the machine may add. Such may bring
	// about another line, that kube-dns is asked for longer.
	eventually(t, "the log tells of an end", func() error {
		if out := server.Output(); !attachedAgain(out, listenAddresses(node)...) {
			return errNotYet{out}
		}
		return nil
	})
	out := false
	for line := range strings.Lines(server.Output()) {
		ranOut, again := strings.Contains(line, ": the lease ran out"), strings.Contains(line, ": attached again")
		switch {
		case !ranOut && !again, out && strings.Contains(line, "DNS goes to the cluster for"):
			continue
		case ranOut == out:
			t.Errorf("two lines about one episode:\n%s", server.Output())
		}
		out = ranOut
	}
}

func TestAnAddressTakenAwayIsPutBack(t *testing.T) {
	node := newNode(t)
	server := serve(t, node, corefile(steady, "", listenAddresses(node)...))
	for _, addr := range []netip.Addr{lab.ClusterDNS4, lab.ClusterDNS6} {
		// On the dummy, or lo where the kernel has none.
		prefix := netip.PrefixFrom(addr, addr.BitLen()).String()
		device := strings.Fields(run(t, node.Namespace, "ip", "-o", "address", "show", "to", prefix))[1]
		run(t, node.Namespace, "ip", "address", "del", prefix, "dev", device)
		eventually(t, addr.String()+" is put back", func() error {
			if !strings.Contains(run(t, node.Namespace, "ip", "-o", "address"), " "+addr.String()+"/") {
				return fmt.Errorf("not yet:\n%s", server.Output())
			}
			return nil
		})
		eventually(t, addr.String()+" answers", func() error {
			if who, err := ask(t, node.Pods[0].Namespace, addr, lab.TCP); err != nil || who != lab.Trackless {
				return fmt.Errorf("answered by %q, %w", who, err)
			}
			return nil
		})
	}
}

// attachedAgain reports whether the log says so of each of the addresses, of which
// several may stand in a line.
func attachedAgain(log string, addrs ...netip.Addr) bool {
	for _, addr := range addrs {
		said := false
		for line := range strings.Lines(log) {
			said = said || strings.Contains(line, addr.String()) && strings.Contains(line, ": attached again")
		}
		if !said {
			return false
		}
	}
	return true
}
