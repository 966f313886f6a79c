//go:build privileged

package integration

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/lab"
)

// probed runs `trackless probe` on the node.
func probed(t *testing.T, node *lab.Node, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, complaint strings.Builder
	cmd := verb(t, append([]string{"probe"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := node.Namespace.Do(cmd.Run); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Fatal(err)
		}
	}
	return cmd.ProcessState.ExitCode(), out.String(), complaint.String()
}

const resolvable = "svc-7-7-7.lab.svc.cluster.local."

func TestProbes(t *testing.T) {
	for _, tc := range []struct {
		name    string
		notrack string
		spoil   func(t *testing.T, node *lab.Node, server *lab.Server)
		args    []string
		ready   string // what is said; with a + if it is
		live    string
	}{
		{name: "attached", notrack: steady, ready: "+" + resolvable + " is answered, and DNS to ", live: "+it answers"},
		{name: "a name that there is not", notrack: steady, args: []string{"--name", "nosuch.example.org"}, ready: "+nosuch.example.org is answered", live: "+it answers"},
		{name: "dry-run", notrack: notrackWith("dry-run"), ready: "+dry-run", live: "+it answers"},
		{name: "no notrack block", notrack: "", ready: "+" + resolvable + " is answered; the Corefile in force has no notrack block", live: "+it answers"},
		{name: "detached by hand", notrack: steady, ready: "+detached by hand", live: "+it answers",
			spoil: func(t *testing.T, node *lab.Node, _ *lab.Server) {
				run(t, node.Namespace, program, "rules", "detach", "--socket", "@trackless/control.sock")
			}},
		{name: "the upstream is gone", notrack: steady, ready: "SERVFAIL", live: "+it answers",
			spoil: func(t *testing.T, node *lab.Node, _ *lab.Server) {
				if err := node.KubeDNS.Kill(); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "the listen address is taken away", notrack: notrackWith("sync 1h"), ready: "169.254.20.10", live: "+it answers",
			spoil: func(t *testing.T, node *lab.Node, _ *lab.Server) {
				// Somebody before us drops what goes there.
				run(t, node.Namespace, "nft", "add table inet foreign; add chain inet foreign in { type filter hook input priority -400; }; add rule inet foreign in ip daddr 169.254.20.10 drop")
			}},
		{name: "stopped", notrack: steady, ready: "no answer within 2s", live: "no answer within 2s",
			spoil: func(t *testing.T, _ *lab.Node, server *lab.Server) {
				stop(t, server)
				t.Cleanup(func() { _ = server.Signal(syscall.SIGCONT) })
			}},
		{name: "dead", notrack: steady, ready: "no instance answers: nobody listens at", live: "no instance answers: nobody listens at",
			spoil: func(t *testing.T, _ *lab.Node, server *lab.Server) {
				if err := server.Kill(); err != nil {
					t.Fatal(err)
				}
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node := newNode(t)
			addrs := listenAddresses(node)
			if tc.notrack == "" {
				// Somebody else has put the address on the node.
				run(t, node.Namespace, "ip", "address", "add", lab.LinkLocalDNS4.String()+"/32", "dev", "lo")
				addrs = addrs[:1]
			}
			server, err := node.Serve(corefile(tc.notrack, "", addrs...))
			if err != nil {
				t.Fatal(err)
			}
			args := append([]string{"ready", "--timeout", "10s", "--name", resolvable}, tc.args...)
			eventually(t, "it is ready", func() error {
				if status, _, complaint := probed(t, node, args...); status != 0 {
					return errors.New(complaint)
				}
				return nil
			})
			if tc.spoil != nil {
				tc.spoil(t, node, server)
				// A name that no cache holds, and less patience.
				args = append(args, "--name", "svc-9-9-9.lab.svc.cluster.local.", "--timeout", "8s")
				if strings.Contains(tc.ready, "2s") {
					args = append(args, "--timeout", "2s")
				}
			}
			check := func(want string, args ...string) {
				t.Helper()
				eventually(t, strings.Join(args, " "), func() error {
					status, out, complaint := probed(t, node, args...)
					said := complaint
					if status == 0 {
						said = "+" + strings.TrimPrefix(out, args[0]+": ")
					}
					if strings.HasPrefix(want, "+") && !strings.HasPrefix(said, want) || !strings.Contains(said, want) || status > 1 {
						return errors.New(said)
					}
					return nil
				})
			}
			check(tc.ready, args...)
			check(tc.live, "live", "--timeout", "2s")
		})
	}
}

func TestProbesAmongTwoInstances(t *testing.T) {
	node := newNode(t)
	first := serve(t, node, corefile(steady, "", listenAddresses(node)...))
	second := serve(t, node, strings.Replace(corefile(steady, "", listenAddresses(node)...), metricsAddress, "127.0.0.1:9254", 1))
	var complaint string
	eventually(t, "both are found", func() error {
		var status int
		if status, _, complaint = probed(t, node, "ready"); status != 1 || !strings.Contains(complaint, "there are 2 instances here") {
			return errNotYet{complaint}
		}
		return nil
	})
	// Each is asked whether it itself is read, whoever the kernel prefers.
	_, named, _ := strings.Cut(complaint, "--socket (")
	named, _, _ = strings.Cut(named, ")")
	pids := map[int]bool{}
	for socket := range strings.SplitSeq(named, ", ") {
		var report struct {
			OK     bool
			Detail string
			PID    int
		}
		eventually(t, socket+" is ready", func() error {
			_, out, _ := probed(t, node, "ready", "--socket", socket, "--output", "json")
			if err := json.Unmarshal([]byte(out), &report); err != nil || !report.OK {
				return errNotYet{out}
			}
			return nil
		})
		pids[report.PID] = true
	}
	if !pids[first.PID()] || !pids[second.PID()] {
		t.Errorf("asked were %v, want %d and %d", pids, first.PID(), second.PID())
	}
}

func TestProbeUsage(t *testing.T) {
	node := newNode(t)
	for _, args := range [][]string{{"ready", "--timeout", "0s"}, {"live", "--output", "xml"}, {"live", "--name", "a."}, {"ready", "now"}, {"fast"}} {
		if status, _, complaint := probed(t, node, args...); status != 2 || complaint == "" {
			t.Errorf("%v: status %d, %q", args, status, complaint)
		}
	}
}

// inContainer runs a script as a pod's container does on the node: with its own
// processes and its own /run, which is where instances listen.
func inContainer(t *testing.T, node *lab.Node, corefile, script string) (out string, err error) {
	t.Helper()
	testns.Program(t, "unshare")
	path := filepath.Join(t.TempDir(), "Corefile")
	if err := os.WriteFile(path, []byte(corefile), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec", `
		mount -t tmpfs none /run
		"$0" serve -conf "$1" >/run/log 2>&1 &
		program=$0
		`+script, program, path)
	err = node.Namespace.Do(func() error {
		b, err := cmd.CombinedOutput()
		out = string(b)
		return err
	})
	return out, err
}

// The probes that the manifests have are over before the packages of CoreDNS, which
// take most of the time, are initialised.
func TestProbesComeBeforeTheProgram(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	corefile := corefile(steady, "", lab.ClusterDNS4)
	const (
		wait  = `"$program" probe ready --wait --timeout 20s; `
		trace = `GODEBUG=inittrace=1 ` // a line for each package
	)
	for _, tc := range []struct{ name, script, says string }{
		{"waits for the start", wait, "ready: kubernetes.default.svc.cluster.local. is answered"},
		{"ready", wait + trace + `"$program" probe ready --wait --timeout 15s`, "ready: kubernetes.default.svc.cluster.local. is answered"},
		{"live", wait + trace + `"$program" probe live`, "live: it answers"},
		{"knowingly detached", wait + `"$program" rules detach; ` + trace + `"$program" probe ready`, "ready: detached by hand"},
		{"nobody, which the whole program explains", `kill -9 $!; wait $! || :; "$program" probe live || :`, "not live: no instance answers: nobody listens at"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, err := inContainer(t, node, corefile, tc.script)
			if err != nil || !strings.Contains(out, tc.says) {
				t.Fatalf("%v\n%s", err, out)
			}
			if strings.Contains(tc.script, trace) != strings.Contains(out, "init syscall ") || strings.Contains(out, "init github.com/coredns/coredns") {
				t.Errorf("initialised first are:\n%s", out)
			}
		})
	}
}
