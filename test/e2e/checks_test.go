//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// names and what they must be: a Service, and a name outside the cluster.
var names = map[string]string{
	"kubernetes.default.svc.cluster.local": "10.96.0.1",
	"www.example.org":                      "192.0.2.80",
}

// resolves asks all names from the pods of both nodes.
func resolves(t *testing.T, servers ...string) {
	t.Helper()
	for _, node := range nodes {
		for _, server := range servers {
			for _, proto := range []string{"udp", "tcp"} {
				for name, want := range names {
					eventually(t, fmt.Sprintf("%s asks %s for %s over %s", node, server, name, proto), 30*time.Second, func() error {
						got, err := lab.ask(t.Context(), node, server, proto, name)
						if err != nil {
							return err
						}
						if len(got) != 1 || got[0].Rcode != "NOERROR" || !slices.Equal(got[0].Records, []string{want}) {
							return fmt.Errorf("got %+v, want %s", got, want)
						}
						return nil
					})
				}
			}
		}
	}
}

// entries are the lines of the node's table for DNS to an address.
func entries(t *testing.T, node, server string) []string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(lab.inNode(t, node, "conntrack", "-L", "--orig-dst", server)) {
		if strings.Contains(line, "dport=53 ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// asks sends a burst over each transport from the pod of a node.
func asks(t *testing.T, node, server string) {
	t.Helper()
	for _, proto := range []string{"udp", "tcp"} {
		l := lab.startLoad(t, node, "-server", server, "-proto", proto, "-for", "500ms", "-name", "*.burst.example.org")()
		if l.Answered != l.Sent || l.Failed > 0 {
			t.Errorf("%s over %s to %s: %+v", node, proto, server, l)
		}
	}
}

// tracked is the control for untracked: without Trackless the same burst is in
// the table of the node.
func tracked(t *testing.T, node string, servers ...string) {
	t.Helper()
	for _, server := range servers {
		asks(t, node, server)
		if len(entries(t, node, server)) == 0 {
			t.Errorf("%s: no entry for DNS to %s, although nothing untracks it: the table is not looked at rightly", node, server)
		}
	}
}

// untracked fails if a burst leaves an entry on the node.
func untracked(t *testing.T, node string, servers ...string) {
	t.Helper()
	for _, server := range servers {
		// What was tracked before stays in the table for a while. The rest of
		// it stays: connections to the upstream are among it.
		forget(t, node, server)
		asks(t, node, server)
		if e := entries(t, node, server); len(e) > 0 {
			t.Errorf("%s: %d entries for DNS to %s, the first: %s", node, len(e), server, e[0])
		}
	}
}

// forget deletes a node's entries for an address.
func forget(t *testing.T, node, server string) {
	t.Helper()
	eventually(t, fmt.Sprintf("no entry for %s on %s", server, node), 30*time.Second, func() error {
		out, err := lab.runInNode(t.Context(), node, "conntrack", "-D", "--orig-dst", server)
		if strings.Contains(out, "0 flow entries") {
			return nil // which is an error to it
		}
		if err != nil { // one may have ended while it was about to be deleted
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
}

// scraped reads the metrics of both nodes from a pod, as Prometheus would.
func scraped(t *testing.T, listen ...string) {
	t.Helper()
	for i, node := range nodes {
		eventually(t, "metrics of "+node, 30*time.Second, func() error {
			page, err := lab.inClient(t.Context(), "n1", "get", fmt.Sprintf("http://172.31.77.1%d:9253/metrics", i+1))
			if err != nil {
				return err
			}
			for _, addr := range listen {
				if want := fmt.Sprintf("coredns_notrack_attached{address=%q} 1", addr); !strings.Contains(page, want) {
					return fmt.Errorf("no %s among the metrics", want)
				}
			}
			if !strings.Contains(page, "coredns_cache_requests_total{") {
				return fmt.Errorf("no coredns_cache_requests_total among the metrics")
			}
			return nil
		})
	}
}

// confined looks at the container's process from outside.
func confined(t *testing.T, container string) {
	t.Helper()
	for _, node := range nodes {
		pid := lab.containerPID(t, node, container)
		if pid == 0 {
			t.Errorf("%s: no container %s", node, container)
			continue
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			"CapEff:\t0000008000001400", // CAP_NET_ADMIN (12), CAP_NET_BIND_SERVICE (10), CAP_BPF (39), linux/capability.h
			"CapBnd:\t0000008000001400",
			"NoNewPrivs:\t1",
			"Seccomp:\t2", // SECCOMP_MODE_FILTER, linux/seccomp.h
		} {
			if !strings.Contains(string(status), want+"\n") {
				t.Errorf("%s: %q is not in the status of the process:\n%s", node, want, status)
			}
		}
		mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(mounts)) {
			if f := strings.Fields(line); f[4] == "/" && !strings.HasPrefix(f[5], "ro,") {
				t.Errorf("%s: the root is mounted %s, want read-only", node, f[5])
			}
		}
	}
}

// nothingLeft fails if a node still has anything of ours.
func nothingLeft(t *testing.T) {
	t.Helper()
	for _, node := range nodes {
		eventually(t, "nothing of ours on "+node, 30*time.Second, func() error {
			for _, look := range []struct {
				args    []string
				strange []string
			}{
				{[]string{"nft", "list", "tables"}, []string{"trackless"}},
				{[]string{"ip", "addr"}, []string{"nodelocaldns", clusterDNS, linkLocal}},
				{[]string{"iptables-save"}, []string{"trackless", "NOTRACK", "NodeLocal"}},
				{[]string{"iptables-legacy-save"}, []string{"trackless", "NOTRACK", "NodeLocal"}},
			} {
				out := lab.inNode(t, node, look.args...)
				for _, s := range look.strange {
					// kube-proxy's rules name the Service's address, not ours
					if strings.Contains(out, s) {
						return fmt.Errorf("%s still shows %s:\n%s", strings.Join(look.args, " "), s, out)
					}
				}
			}
			if found := programs(t, node); len(found) > 0 {
				return fmt.Errorf("programs at devices: %s", strings.Join(found, ", "))
			}
			return nil
		})
	}
}
