//go:build chaos

package chaos_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/test/chaos/scene"
)

// TestCyclesUnderAContendedLock starts and stops trackless two hundred times on
// legacy iptables while another program takes the xtables lock again and again,
// and finds no rule twice and none left.
func TestCyclesUnderAContendedLock(t *testing.T) {
	needNode(t)
	testns.Program(t, "flock")
	lock := filepath.Join(t.TempDir(), "xtables.lock")
	t.Setenv("XTABLES_LOCKFILE", lock)
	node := newNode(t)
	for _, base := range []string{"iptables", "ip6tables"} {
		output(t, node, base+"-legacy", "-t", "raw", "-S") // makes the table
	}
	before, beforeDump := state(t, node), settled(t, node)
	contend(t, lock)

	corefile := strings.Replace(attachedCorefile, "    notrack\n", "    notrack {\n        backend iptables legacy\n    }\n", 1)
	for i := range cycles {
		server, err := node.Serve(corefile)
		if err != nil {
			t.Fatal(err)
		}
		await(t, func(ctx context.Context) error { return server.AwaitAttached(ctx, metricsAddress) })
		for _, base := range []string{"iptables", "ip6tables"} {
			rules := output(t, node, base+"-legacy-save", "-t", "raw")
			for _, chain := range []string{"PREROUTING", "OUTPUT"} {
				if n := strings.Count(rules, "-A "+chain+" "); n != 1 {
					t.Fatalf("cycle %d: %d rules in %s of %s:\n%s", i, n, chain, base, rules)
				}
			}
		}
		if i%deadEvery == 0 {
			err = server.Kill()
		} else {
			err = server.Close()
		}
		if err != nil {
			t.Fatalf("cycle %d: %v", i, err)
		}
	}
	result := &scene.Result{}
	beforeDump.Compare(dump(t, node), scene.ExceptionsStopped(), "after the cycles", result)
	for _, failure := range result.Failures {
		t.Errorf("%s", failure.Text)
	}
	awaitState(t, node, before)
}

// contend takes the lock for 50 ms of every 60 until the test ends.
func contend(t *testing.T, lock string) {
	t.Helper()
	// It ends by itself where this process is killed.
	contender := exec.Command("sh", "-c", `while kill -0 "$1"; do flock "$0" sleep 0.05; sleep 0.01; done`, lock, strconv.Itoa(os.Getpid()))
	contender.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := contender.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Kill(-contender.Process.Pid, unix.SIGKILL)
		_ = contender.Wait()
	})
}

func output(t *testing.T, node *lab.Node, name string, args ...string) string {
	t.Helper()
	var out []byte
	err := node.Namespace.Do(func() (err error) {
		out, err = exec.Command(name, args...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatal(fmt.Errorf("%s %v: %w\n%s", name, args, err, out))
	}
	return string(out)
}
