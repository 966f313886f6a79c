//go:build privileged

package integration

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/lab"
)

// kernelOn has the kernel answer.
const kernelOn = "fastpath {\nkernel on\nsockets off\n}"

// hits is how many queries the kernel has answered.
func hits(t *testing.T, server *lab.Server) float64 {
	t.Helper()
	n, _ := scraped(t, server).Sum("coredns_fastpath_requests_total")
	return n
}

// scraped are the metrics. During a reload nobody listens there.
func scraped(t *testing.T, server *lab.Server) (m lab.Metrics) {
	t.Helper()
	eventually(t, "metrics are read", func() (err error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		m, err = server.Metrics(ctx, metricsAddress)
		return err
	})
	return m
}

// lookup asks for a name, and returns the reply without its id.
func lookup(t *testing.T, from *lab.Namespace, addr netip.Addr, name string) (*dns.Msg, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	m, err := from.Query(ctx, lab.UDP, addr, new(dns.Msg).SetQuestion(name, dns.TypeA))
	if err == nil {
		m.Id = 0
	}
	return m, err
}

// rises asks until the kernel answers.
func rises(t *testing.T, server *lab.Server, from *lab.Namespace, addr netip.Addr) {
	t.Helper()
	before := hits(t, server)
	eventually(t, fmt.Sprintf("the kernel answers %s at %s", from.Name(), addr), func() error {
		if _, err := lookup(t, from, addr, "svc-1-2-3.lab.svc.cluster.local."); err != nil {
			return err
		}
		if hits(t, server) == before {
			return errors.New("no hit")
		}
		return nil
	})
}

// stays asks for a while, in which the kernel must not answer.
func stays(t *testing.T, server *lab.Server, from *lab.Namespace, addr netip.Addr) {
	t.Helper()
	time.Sleep(1500 * time.Millisecond) // the counts of earlier hits come within a second
	before := hits(t, server)
	for range 5 {
		if _, err := lookup(t, from, addr, "svc-1-2-3.lab.svc.cluster.local."); err != nil {
			t.Errorf("%s at %s: %v", from.Name(), addr, err)
		}
	}
	time.Sleep(1500 * time.Millisecond)
	if n := hits(t, server); n != before {
		t.Errorf("%s at %s: the kernel has answered %v queries", from.Name(), addr, n-before)
	}
}

// bridgeMAC is the hardware address of the bridge. That of the port is another one.
const bridgeMAC = "02:00:00:00:cb:01"

// bridged puts the pod behind the port of a bridge.
func bridged(t *testing.T, node *lab.Node, pod *lab.Pod) {
	t.Helper()
	link := pod.HostLink
	script := fmt.Sprintf(`set -e
ip link add cni0 address %[2]s type bridge
ip link set %[1]s master cni0
ip link set cni0 up
`, link, bridgeMAC)
	mac := strings.TrimSpace(run(t, pod.Namespace, "sh", "-c", "ip -o link show eth0 | sed 's/.*link.ether \\([^ ]*\\).*/\\1/'"))
	for _, a := range pod.Addrs {
		gateway := "10.244.0.1/32"
		if a.Is6() {
			gateway = "fd00:244::1/128"
		}
		run(t, pod.Namespace, "ip", "neigh", "replace", strings.Split(gateway, "/")[0], "lladdr", bridgeMAC, "dev", "eth0", "nud", "permanent")
		script += fmt.Sprintf("ip addr del %[1]s dev %[2]s || true\nip addr add %[1]s dev cni0\nip neigh replace %[3]s lladdr %[4]s dev cni0 nud permanent\nip route replace %[3]s dev cni0\n", gateway, link, a, mac)
	}
	run(t, node.Namespace, "sh", "-c", script)
}

// traces are what the kernel has of a program that is attached or mapped.
func traces(t *testing.T, node *lab.Node) string {
	t.Helper()
	return run(t, node.Namespace, "sh", "-c", "tc qdisc show | grep clsact || true")
}

func TestKernelAnswers(t *testing.T) {
	node := newNode(t)
	bridged(t, node, node.Pods[1])
	server := serve(t, node, corefile(steady, kernelOn, node.ClusterDNS()...))
	run(t, node.Namespace, "nft", "table inet seen { chain first { type filter hook prerouting priority -500; udp dport 53 counter; }; }")
	for _, pod := range node.Pods {
		for _, addr := range node.ClusterDNS() {
			t.Run(fmt.Sprintf("%s at %s", pod.Name(), addr), func(t *testing.T) {
				rises(t, server, pod.Namespace, addr)
				// A name that is in the cache, and is asked twice: with the same bytes.
				want, err := lookup(t, pod.Namespace, addr, "svc-7-8-9.lab.svc.cluster.local.")
				if err != nil {
					t.Fatal(err)
				}
				eventually(t, "a query that netfilter does not see is answered", func() error {
					before := run(t, node.Namespace, "nft", "list", "table", "inet", "seen")
					if _, err := lookup(t, pod.Namespace, addr, "svc-7-8-9.lab.svc.cluster.local."); err != nil {
						return err
					}
					if run(t, node.Namespace, "nft", "list", "table", "inet", "seen") != before {
						return errors.New("netfilter has seen it")
					}
					return nil
				})
				for range 3 {
					got, err := lookup(t, pod.Namespace, addr, "svc-7-8-9.lab.svc.cluster.local.")
					if err != nil {
						t.Fatal(err)
					}
					for _, m := range []*dns.Msg{want, got} {
						for _, rr := range m.Answer {
							rr.Header().Ttl = 0
						}
					}
					if got.String() != want.String() {
						t.Errorf("the kernel: %s\nCoreDNS: %s", got, want)
					}
				}
			})
		}
	}
	if entries := dnsEntries(t, node); len(entries) > 0 {
		t.Errorf("entries with a listen address:\n%s", strings.Join(entries, ""))
	}
	for _, m := range scraped(t, server)["coredns_fastpath_info"].GetMetric() {
		if m.GetGauge().GetValue() != 1 {
			t.Errorf("not eligible: %s", m)
		}
	}
	out, _ := trackless(t, node, "rules", "show")
	for _, want := range []string{"BPF program ", node.Pods[0].HostLink + " tcx", node.Pods[1].HostLink + " tcx"} {
		if !strings.Contains(out, want) {
			t.Errorf("rules show has no %q:\n%s", want, out)
		}
	}
	pid := server.PID()
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
		t.Error("the process has not ended")
	}
	if left := traces(t, node); left != "" {
		t.Errorf("left: %s", left)
	}
	for _, pod := range node.Pods {
		if who, err := ask(t, pod.Namespace, lab.ClusterDNS4, lab.UDP); who != lab.KubeDNS || err != nil {
			t.Errorf("after the end %s is answered by %q, %v", pod.Name(), who, err)
		}
	}
}

func TestKernelFollowsTheLease(t *testing.T) {
	if testing.Short() {
		t.Skip("the program under test is not the race detector's")
	}
	node := newNode(t)
	text := corefile("notrack", kernelOn, node.ClusterDNS()...)
	server := serve(t, node, text)
	pod := node.Pods[0].Namespace
	rises(t, server, pod, lab.ClusterDNS4)
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"detach", func() {
			if out, status := trackless(t, node, "rules", "detach"); status != 0 {
				t.Fatal(out)
			}
			eventually(t, "kube-dns answers", byWhom(t, pod, lab.KubeDNS))
			stays(t, server, pod, lab.ClusterDNS4)
			if out, status := trackless(t, node, "rules", "attach"); status != 0 {
				t.Fatal(out)
			}
		}},
		{"reload", func() {
			if err := server.Reload(strings.ReplaceAll(text, "cache 30", "cache 29")); err != nil {
				t.Fatal(err)
			}
			for range 50 {
				if _, err := lookup(t, pod, lab.ClusterDNS4, "svc-1-2-3.lab.svc.cluster.local."); err != nil {
					t.Errorf("during the reload: %v", err)
				}
			}
		}},
		{"off", func() {
			if err := server.Reload(strings.ReplaceAll(text, "kernel on", "kernel off")); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the program is gone", func() error {
				if _, there := scraped(t, server).Sum("coredns_fastpath_records"); there {
					return errors.New("there are records")
				}
				return nil
			})
			stays(t, server, pod, lab.ClusterDNS4)
			if err := server.Reload(text); err != nil {
				t.Fatal(err)
			}
		}},
		{"SIGSTOP", func() {
			stop(t, server)
			eventually(t, "kube-dns answers", byWhom(t, pod, lab.KubeDNS))
			if err := server.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(step.name, func(t *testing.T) {
			step.do()
			eventually(t, "it answers again", byWhom(t, pod, lab.Trackless))
			rises(t, server, pod, lab.ClusterDNS4)
		})
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "kube-dns answers after the kill", byWhom(t, pod, lab.KubeDNS))
}

// left returns why a device is left to CoreDNS; empty: the kernel answers there.
func left(t *testing.T, server *lab.Server, device string) string {
	t.Helper()
	for _, m := range scraped(t, server)["coredns_fastpath_device_left_info"].GetMetric() {
		reason := ""
		mine := false
		for _, l := range m.GetLabel() {
			switch l.GetName() {
			case "device":
				mine = l.GetValue() == device
			case "reason":
				reason = l.GetValue()
			}
		}
		if mine {
			return reason
		}
	}
	return ""
}

// Rules of other programs hold also for names that the cache has, and come into force
// although the process has run before.
func TestPoliciesHold(t *testing.T) {
	if testing.Short() {
		t.Skip("the program under test is not the race detector's")
	}
	node := newNode(t)
	bridged(t, node, node.Pods[1])
	server := serve(t, node, corefile(steady, kernelOn, lab.ClusterDNS4))
	for _, pod := range node.Pods[:2] {
		client := pod.Addrs[0].String()
		calico := fmt.Sprintf("table ip calico { chain filter-INPUT { type filter hook input priority 0; ip saddr %s meta mark & 0x10000 == 0 udp dport 53 drop; }; }", client)
		for _, rule := range []struct{ name, chain, add, remove string }{
			{
				"an INPUT drop by source", "in",
				"nft 'table inet own { chain in { type filter hook input priority 0; ip saddr " + client + " drop; }; }'", "nft delete table inet own",
			},
			{
				"a drop by source in mangle", "PREROUTING",
				"iptables-nft -t mangle -A PREROUTING -s " + client + " -p udp --dport 53 -j DROP", "iptables-nft -t mangle -F PREROUTING",
			},
			{
				"kube-router's shape", "INPUT",
				"iptables-nft -N KUBE-POD-FW; iptables-nft -A KUBE-POD-FW -m mark ! --mark 0x10000/0x10000 -j REJECT; iptables-nft -I INPUT -s " + client + " -p udp --dport 53 -j KUBE-POD-FW",
				"iptables-nft -F INPUT; iptables-nft -F KUBE-POD-FW; iptables-nft -X KUBE-POD-FW",
			},
			{"Calico's nftables shape", "filter-INPUT", "nft '" + calico + "'", "nft delete table ip calico"},
		} {
			t.Run(rule.name+" for "+pod.Name(), func(t *testing.T) {
				rises(t, server, pod.Namespace, lab.ClusterDNS4)
				run(t, node.Namespace, "sh", "-ec", rule.add)
				began := time.Now()
				eventually(t, "the device is left", func() error {
					if why := left(t, server, pod.HostLink); !strings.Contains(why, "chain "+rule.chain+" of table ") {
						return fmt.Errorf("reason %q", why)
					}
					return nil
				})
				t.Logf("seen after %v", time.Since(began))
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				query := new(dns.Msg).SetQuestion("svc-1-2-3.lab.svc.cluster.local.", dns.TypeA)
				// notrack may send queries that do not arrive to kube-dns.
				if m, err := pod.Query(ctx, lab.UDP, lab.ClusterDNS4, query); err == nil && lab.Identify(m) == lab.Trackless {
					t.Errorf("a denied pod is answered: %s", m)
				}
				if !strings.Contains(server.Output(), pod.HostLink+": the kernel answers no queries here") {
					t.Errorf("the log does not name %s:\n%s", pod.HostLink, server.Output())
				}
				run(t, node.Namespace, "sh", "-ec", rule.remove)
				eventually(t, "the kernel answers there again", func() error {
					if why := left(t, server, pod.HostLink); why != "" {
						return errors.New(why)
					}
					return nil
				})
			})
		}
	}
}

func byWhom(t *testing.T, from *lab.Namespace, want lab.Responder) func() error {
	return func() error {
		who, err := ask(t, from, lab.ClusterDNS4, lab.UDP)
		if err == nil && who != want {
			err = fmt.Errorf("%s answers", who)
		}
		return err
	}
}

// Without CAP_BPF the program is not loaded. One line of the log says so, and CoreDNS answers.
func TestKernelWithoutCapability(t *testing.T) {
	testns.Program(t, "setpriv")
	real, err := filepath.Abs(program)
	if err != nil {
		t.Fatal(err)
	}
	limited := filepath.Join(t.TempDir(), "trackless")
	script := fmt.Sprintf("#!/bin/sh\nexec setpriv --bounding-set -all,+net_admin,+net_bind_service %s \"$@\"\n", real)
	if err := os.WriteFile(limited, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	node := newNodeOf(t, lab.Options{Program: limited})
	server := serve(t, node, corefile(steady, kernelOn, node.ClusterDNS()...))
	if who, err := ask(t, node.Pods[0].Namespace, lab.ClusterDNS4, lab.UDP); who != lab.Trackless || err != nil {
		t.Errorf("answered by %q, %v", who, err)
	}
	var lines []string
	for line := range strings.Lines(server.Output()) {
		if strings.Contains(line, "plugin/fastpath") {
			lines = append(lines, line)
		}
	}
	if len(lines) != 1 || !strings.Contains(lines[0], "the process lacks CAP_BPF") {
		t.Errorf("log: %q", lines)
	}
}
