//go:build kernels

package kernels

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/labtest"
)

const metricsAddress = "127.0.0.1:9253"

// A node on which trackless is served, with one backend.
type node struct {
	*lab.Node
	t        *testing.T
	corefile string
	listen   []netip.Addr
}

func newNode(t *testing.T, backend string) *node {
	n := &node{Node: labtest.NewNode(t, lab.Options{}), t: t}
	n.listen = append([]netip.Addr{lab.LinkLocalDNS4}, n.ClusterDNS()...)
	var addresses []string
	for _, a := range n.listen {
		addresses = append(addresses, a.String())
	}
	n.corefile = fmt.Sprintf(`.:53 {
    errors
    bind %s
    notrack {
        backend %s
    }
    cache 30
    forward . %s
    prometheus %s
}
`, strings.Join(addresses, " "), backend, lab.UpstreamDNS4, metricsAddress)
	return n
}

// serve starts trackless and waits until it is attached at every address.
func (n *node) serve() *lab.Server {
	n.t.Helper()
	server, err := n.Serve(n.corefile)
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	if err := server.AwaitAttached(ctx, metricsAddress); err != nil {
		n.t.Fatal(err)
	}
	return server
}

// run runs a program on the node; status is its exit status.
func (n *node) run(name string, args ...string) (output string, status int) {
	n.t.Helper()
	cmd := exec.Command(name, args...)
	var out []byte
	err := n.Namespace.Do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	if cmd.ProcessState == nil {
		n.t.Fatalf("%s %v: %v", name, args, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// must is run of what has to succeed.
func (n *node) must(name string, args ...string) string {
	n.t.Helper()
	out, status := n.run(name, args...)
	if status != 0 {
		n.t.Fatalf("%s %v: status %d\n%s", name, args, status, out)
	}
	return out
}

// answeredBy asks every address over both protocols, from a pod and from the
// node, until each is answered by the responder. It returns how long that took.
func (n *node) answeredBy(want lab.Responder) time.Duration {
	n.t.Helper()
	start := time.Now()
	for _, from := range []*lab.Namespace{n.Pods[0].Namespace, n.Namespace} {
		for _, addr := range n.listen {
			for _, protocol := range []lab.Protocol{lab.UDP, lab.TCP} {
				eventually(n.t, fmt.Sprintf("%s %s from %s is answered by %s", protocol, addr, from.Name(), want), func() error {
					who, err := ask(n.t.Context(), from, protocol, addr)
					if err == nil && who != want {
						err = fmt.Errorf("answered by %s", who)
					}
					return err
				})
			}
		}
	}
	return time.Since(start).Round(10 * time.Millisecond)
}

func ask(ctx context.Context, from *lab.Namespace, protocol lab.Protocol, addr netip.Addr) (lab.Responder, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	response, err := from.Query(ctx, protocol, addr, new(dns.Msg).SetQuestion("svc-1-2-3.lab.svc.cluster.local.", dns.TypeA))
	if err != nil {
		return "", err
	}
	return lab.Identify(response), nil
}

// eventually polls until a condition holds.
func eventually(t *testing.T, what string, holds func() error) {
	t.Helper()
	testwait.Until(t, 30*time.Second, what, holds)
}

// entries are the lines of `conntrack -L` with a listen address.
func (n *node) entries() (found []string) {
	n.t.Helper()
	for _, family := range []string{"ipv4", "ipv6"} {
		for line := range strings.Lines(n.must("conntrack", "-L", "-f", family)) {
			for _, a := range n.listen {
				if strings.Contains(line, "="+a.String()+" ") {
					found = append(found, line)
				}
			}
		}
	}
	return found
}

// state is everything of the node that a start changes: rules of all kinds, links
// and addresses.
func (n *node) state() string {
	n.t.Helper()
	var all strings.Builder
	for _, command := range []string{
		"nft list ruleset", "iptables-legacy-save", "ip6tables-legacy-save", "ip -o link", "ip -o address",
	} {
		words := strings.Fields(command)
		all.WriteString(n.must(words[0], words[1:]...))
	}
	return all.String()
}

// The listen addresses lie on a dummy, which is there when trackless is and not
// otherwise.
func TestListenLink(t *testing.T) {
	n := newNode(t, "auto")
	if out, status := n.run("ip", "link", "add", "probe", "type", "dummy"); status != 0 {
		testns.Skip(t, "dummy devices: %s", out)
	}
	n.must("ip", "link", "del", "probe")
	server := n.serve()
	if link := n.must("ip", "-o", "-d", "link", "show", "nodelocaldns"); !strings.Contains(link, " dummy ") {
		t.Errorf("the link is no dummy: %s", link)
	}
	addresses := n.must("ip", "-o", "address", "show", "dev", "nodelocaldns")
	for _, a := range n.listen {
		if !strings.Contains(addresses, " "+a.String()+"/") {
			t.Errorf("%s is not on the link:\n%s", a, addresses)
		}
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if out, status := n.run("ip", "link", "show", "nodelocaldns"); status == 0 {
		t.Errorf("left behind: %s", out)
	}
}

// The promises, on the kernel as it is, with the program as it is.
func TestServe(t *testing.T) {
	for _, tc := range []struct {
		backend string
		rules   string // what shows that they are there
		list    []string
		gone    bool // with the process, without anybody's help
	}{
		{"nftables", "trackless-", []string{"nft", "list", "tables"}, true},
		{"iptables legacy", "--notrack", []string{"iptables-legacy-save", "-t", "raw"}, false},
		{"iptables nft", "--notrack", []string{"iptables-nft-save", "-t", "raw"}, false},
	} {
		t.Run(tc.backend, func(t *testing.T) {
			n := newNode(t, tc.backend)
			n.answeredByService()
			if len(n.entries()) == 0 {
				t.Error("queries through kube-proxy left no entry: what follows shows nothing")
			}
			n.must("conntrack", "-F")

			server := n.serve()
			// Connections to the Service, from before, may have left entries
			// until the rules were there.
			n.must("conntrack", "-F")
			n.answeredBy(lab.Trackless)
			if found := n.entries(); len(found) > 0 {
				t.Errorf("entries:\n%s", strings.Join(found, ""))
			}
			if out := n.must(tc.list[0], tc.list[1:]...); !strings.Contains(out, tc.rules) {
				t.Errorf("no %s in\n%s", tc.rules, out)
			}
			n.verbs(tc.backend)

			stop(t, server.PID())
			t.Logf("SIGSTOP: kube-dns answers everywhere after %s", n.answeredBy(lab.KubeDNS))
			if err := server.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			t.Logf("SIGCONT: trackless answers everywhere after %s", n.answeredBy(lab.Trackless))

			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			t.Logf("SIGKILL: kube-dns answers everywhere after %s", n.answeredBy(lab.KubeDNS))
			if tc.gone {
				eventually(t, "the rules go with the process", func() error {
					if tables := strings.ReplaceAll(n.must("nft", "list", "tables"), "trackless-failover", ""); strings.Contains(tables, tc.rules) {
						return fmt.Errorf("left behind: %s", tables)
					}
					return nil
				})
			}

			// The next start takes over what is left, and a stop leaves nothing
			// but what rules remove takes away.
			server = n.serve()
			n.answeredBy(lab.Trackless)
			if err := server.Close(); err != nil {
				t.Fatal(err)
			}
			n.answeredBy(lab.KubeDNS)
			n.must(labtest.Program(t), "rules", "remove")
			for _, name := range []string{"trackless", "nodelocaldns", "NOTRACK", "--notrack", lab.LinkLocalDNS4.String()} {
				if state := n.state(); strings.Contains(state, name) {
					t.Errorf("%s is left behind in\n%s", name, state)
				}
			}
		})
	}
}

// answeredByService asks what kube-dns answers before trackless runs: the
// addresses of its Service.
func (n *node) answeredByService() {
	n.t.Helper()
	all := n.listen
	defer func() { n.listen = all }()
	n.listen = n.ClusterDNS()
	n.answeredBy(lab.KubeDNS)
}

// verbs runs what an administrator looks with.
func (n *node) verbs(backend string) {
	n.t.Helper()
	program := labtest.Program(n.t)
	name, _, _ := strings.Cut(backend, " ")
	// Where the processor is emulated, a lease may lapse and come back.
	eventually(n.t, "rules show an attached instance", func() error {
		var shown struct {
			Instances []struct{ Backend, State string }
		}
		if err := json.Unmarshal([]byte(n.must(program, "rules", "show", "--output", "json")), &shown); err != nil {
			return err
		}
		if i := shown.Instances; len(i) != 1 || i[0].State != "attached" || i[0].Backend != name {
			return fmt.Errorf("%+v", i)
		}
		return nil
	})
	path := filepath.Join(n.t.TempDir(), "Corefile")
	if err := os.WriteFile(path, []byte(n.corefile), 0o644); err != nil {
		n.t.Fatal(err)
	}
	if plan := n.must(program, "rules", "plan", "--conf", path); !strings.Contains(plan, "notrack") && !strings.Contains(plan, "NOTRACK") {
		n.t.Errorf("rules plan:\n%s", plan)
	}
	var findings any
	out, status := n.run(program, "doctor", "--output", "json")
	if err := json.Unmarshal([]byte(out), &findings); err != nil || status > 1 {
		n.t.Errorf("doctor: status %d, %v\n%s", status, err, out)
	}
}

// stop sends SIGSTOP and waits until no thread runs any more.
func stop(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "every thread is stopped", func() error {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil {
			return err
		}
		for _, path := range stats {
			stat, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			// The state follows the command name (proc_pid_stat(5)).
			if _, rest, _ := strings.Cut(string(stat), ") "); !strings.HasPrefix(rest, "T") {
				return fmt.Errorf("%s: not stopped", path)
			}
		}
		return nil
	})
}
