//go:build privileged

package host

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/node/advice"
)

// The kube-proxy of another node, in a namespace of its own, sets nothing here.
// The process is this test's own binary, which names its Go version.
func TestKubeProxiesOfThisNamespace(t *testing.T) {
	t.Parallel()
	ns := testns.New(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	named := filepath.Join(t.TempDir(), "kube-proxy")
	if err := os.Symlink(program, named); err != nil {
		t.Fatal(err)
	}
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		t.Fatal(err)
	}
	cpu := 0
	for !allowed.IsSet(cpu) {
		cpu++
	}
	cmd := exec.Command("taskset", "-c", strconv.Itoa(cpu), named, "-test.run=TestHelperSleep", "--", "--conntrack-min=77")
	cmd.Env = append(os.Environ(), "TRACKLESS_TEST_SLEEP=1")
	ready, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stop, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	ns.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Skipf("taskset: %v", err)
	}
	t.Cleanup(func() { _ = stop.Close(); _ = cmd.Wait() })
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	find := func() []advice.KubeProxy {
		// Others of this machine may run a kube-proxy too: a root with ours alone.
		root := t.TempDir()
		if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
			t.Fatal(err)
		}
		pid := strconv.Itoa(cmd.Process.Pid)
		if err := os.Symlink("/proc/"+pid, filepath.Join(root, "proc", pid)); err != nil {
			t.Fatal(err)
		}
		list, err := KubeProxies(root, "/proc/thread-self")
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if list := find(); len(list) != 0 {
		t.Errorf("from another namespace: %+v", list)
	}
	ns.Do(func() {
		list := find()
		if len(list) != 1 || list[0].OwnCPUs != 1 || list[0].Since < 21 {
			t.Errorf("from its namespace: %+v", list)
		}
	})
}
