//go:build privileged

package integration

import (
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/lab"
)

// trackless runs a verb of the program on the node.
func trackless(t *testing.T, node *lab.Node, args ...string) (output string, status int) {
	t.Helper()
	cmd := verb(t, args...)
	var out []byte
	err := node.Namespace.Do(func() error {
		var err error
		out, err = cmd.CombinedOutput()
		return err
	})
	if cmd.ProcessState == nil {
		t.Fatalf("trackless %v: %v", args, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func TestRulesVerbs(t *testing.T) {
	node := newNode(t)
	server := serve(t, node, corefile(steady, "", listenAddresses(node)...))
	pod := node.Pods[0].Namespace
	expect := func(want lab.Responder) {
		t.Helper()
		for _, addr := range listenAddresses(node) {
			for _, protocol := range []lab.Protocol{lab.UDP, lab.TCP} {
				if who, err := ask(t, pod, addr, protocol); who != want || err != nil {
					t.Errorf("%s %s: answered by %q, %v; want %s", protocol, addr, who, err, want)
				}
			}
		}
	}
	run := func(wantStatus int, wantText string, args ...string) {
		t.Helper()
		out, status := trackless(t, node, args...)
		if status != wantStatus || !strings.Contains(out, wantText) {
			t.Errorf("trackless %v: status %d, want %d with %q:\n%s", args, status, wantStatus, wantText, out)
		}
	}
	expect(lab.Trackless)
	run(0, tableName(t, node), "rules", "show")
	run(0, "trackless-failover", "rules", "show")

	// Back to the cluster at once, without a restart, for as long as it takes.
	run(0, "", "rules", "detach")
	expect(lab.KubeDNS)
	run(0, "by hand", "rules", "show")
	run(0, "", "rules", "attach")
	expect(lab.Trackless)

	// A living owner's table is its own.
	run(1, "pid", "rules", "remove")
	expect(lab.Trackless)

	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	run(0, "", "rules", "remove")
	if tables := runOn(t, node, "nft", "list", "tables"); strings.Contains(tables, "trackless") {
		t.Errorf("left after remove:\n%s", tables)
	}
	run(0, "", "rules", "remove")
}

func runOn(t *testing.T, node *lab.Node, name string, args ...string) string {
	t.Helper()
	return run(t, node.Namespace, name, args...)
}
