//go:build privileged

// Package integration runs the real binary on a lab node and asks it as pods
// and the node would.
package integration

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/nodestate"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/internal/testprogram"
	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/lab"
)

var program string // the trackless binary under test

func TestMain(m *testing.M) {
	os.Exit(func() int {
		folder, err := os.MkdirTemp("", "trackless-integration-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(folder)
		if program, err = testprogram.File(folder); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// newNode builds a node that is gone with the test.
func newNode(t *testing.T) *lab.Node {
	t.Helper()
	return newNodeOf(t, lab.Options{Program: program})
}

func newNodeOf(t *testing.T, options lab.Options) *lab.Node {
	t.Helper()
	testns.Root(t)
	node, err := lab.NewNode(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := node.Close(); err != nil {
			t.Error(err)
		}
	})
	return node
}

const metricsAddress = "127.0.0.1:9253"

// steady is the notrack block of tests that are not about the lease. Its lease
// outlasts the stalls of a busy machine, which are no fault of what is tested.
var steady = notrackWith()

// notrackWith is a notrack block with these options, and with the longest lease
// that there is unless they set one.
func notrackWith(options ...string) string {
	if !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "lease ") }) {
		options = append(options, "lease 5s")
	}
	return "notrack {\n" + strings.Join(options, "\n") + "\n}"
}

// corefile is a cache in front of kube-dns at the given addresses; extra
// stands in the same server block.
func corefile(notrack string, extra string, addrs ...netip.Addr) string {
	var list []string
	for _, a := range addrs {
		list = append(list, a.String())
	}
	return fmt.Sprintf(`.:53 {
    errors
    bind %s
    %s
    cache 30
    forward . %s
    prometheus %s
    %s
}
`, strings.Join(list, " "), notrack, lab.UpstreamDNS4, metricsAddress, extra)
}

func listenAddresses(node *lab.Node) []netip.Addr {
	return append([]netip.Addr{lab.LinkLocalDNS4}, node.ClusterDNS()...)
}

// serve starts the program and waits until its rules are in force.
func serve(t *testing.T, node *lab.Node, corefile string) *lab.Server {
	t.Helper()
	server, err := node.Serve(corefile)
	if err != nil {
		t.Fatal(err)
	}
	awaitAttached(t, server, metricsAddress)
	return server
}

func awaitAttached(t *testing.T, server *lab.Server, metrics string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := server.AwaitAttached(ctx, metrics); err != nil {
		t.Fatal(err)
	}
}

// run runs a program inside a namespace and returns its output.
func run(t *testing.T, ns *lab.Namespace, name string, args ...string) string {
	t.Helper()
	testns.Program(t, name)
	var out []byte
	err := ns.Do(func() error {
		var err error
		out, err = exec.Command(name, args...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// verb is a command of the program that finds no control socket but those of its
// network namespace, and one that a killed process left: other instances on this
// machine are none of its business.
func verb(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	testns.Program(t, "unshare")
	dir, err := os.MkdirTemp("", "run-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	sockets := filepath.Join(dir, "trackless")
	if err := os.Mkdir(sockets, 0o700); err != nil {
		t.Fatal(err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(sockets, "1.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	script := `mount --bind "$1" /run; shift; exec "$@"`
	return exec.Command("unshare", append([]string{"--mount", "sh", "-ec", script, "sh", dir, program}, args...)...)
}

// failoverTable is the standing table for addresses that no Service owns, which
// stays when the process goes.
var failoverTable = regexp.MustCompile(`(?ms)^table inet trackless-failover \{.*?^\}\n`)

// state is what a start may change on a node and has to remove: rules, sets,
// links, addresses and routes. It leaves out the failover table.
func state(t *testing.T, node *lab.Node) nodestate.State {
	t.Helper()
	return wholeState(t, node).Without(func(command, output string) string {
		if command != "nft list ruleset" {
			return output
		}
		return noted.ReplaceAllString(failoverTable.ReplaceAllString(output, ""), "$1")
	})
}

// wholeState is all that is configured on a node.
func wholeState(t *testing.T, node *lab.Node) (out nodestate.State) {
	t.Helper()
	err := node.Namespace.Do(func() (err error) {
		out, err = nodestate.Read()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// noted are the elements that packets put into sets of ours.
var noted = regexp.MustCompile(`(?s)(set (?:exempt|held|opening|closing|asked|arrived|aside)\d? \{[^}]*?)\n\t\telements = \{[^}]*\}`)

// patience is how long a thing that takes a moment may take on a machine that
// has other things to do.
const patience = time.Minute

// eventually polls a condition until it holds.
func eventually(t *testing.T, what string, holds func() error) {
	t.Helper()
	testwait.Until(t, patience, what, holds)
}

// stop sends SIGSTOP and waits until no thread runs any more: the signal is
// taken at each thread's leisure, and queries are answered until then.
func stop(t *testing.T, server *lab.Server) {
	t.Helper()
	if err := server.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "every thread is stopped", func() error {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", server.PID()))
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
