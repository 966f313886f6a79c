// Package integration runs the real binary on a lab node and asks it as pods
// and the node would.
package integration

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/lab"
)

var program string // the trackless binary under test

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if program = os.Getenv("TRACKLESS_PROGRAM"); program != "" {
			return m.Run()
		}
		dir, err := os.MkdirTemp("", "trackless-integration-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "trackless")
		build := exec.Command("go", "build", "-o", program, "../../cmd/trackless")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the program under test: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// newNode builds a node that is gone with the test.
func newNode(t *testing.T) *lab.Node {
	t.Helper()
	testns.Root(t)
	node, err := lab.NewNode(t.Context(), lab.Options{Program: program})
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
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := server.AwaitAttached(ctx, metricsAddress); err != nil {
		t.Fatal(err)
	}
	return server
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

// failoverTable is the standing table for addresses that no Service owns, which
// stays when the process goes.
var failoverTable = regexp.MustCompile(`(?ms)^table inet trackless-failover \{.*?^\}\n`)

// state is what a start may change on a node and has to take back: rules, links
// and addresses.
func state(t *testing.T, node *lab.Node) string {
	t.Helper()
	ruleset := failoverTable.ReplaceAllString(run(t, node.Namespace, "nft", "-s", "list", "ruleset"), "")
	return noted.ReplaceAllString(ruleset, "$1") +
		run(t, node.Namespace, "ip", "-o", "address") +
		run(t, node.Namespace, "ip", "-br", "link") +
		run(t, node.Namespace, "ip", "route", "show", "table", "all")
}

// noted are the elements that packets put into sets of ours.
var noted = regexp.MustCompile(`(?s)(set (?:exempt|held|asked|arrived|aside)\d? \{[^}]*?)\n\t\telements = \{[^}]*\}`)

// eventually polls a condition until it holds.
func eventually(t *testing.T, what string, holds func() error) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
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
