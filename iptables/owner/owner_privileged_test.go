//go:build privileged

package owner

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testns"
)

func TestAnOwnerInAPIDNamespaceBelow(t *testing.T) {
	testns.Root(t)
	testns.Program(t, "unshare")
	child := exec.Command("unshare", "--pid", "--fork", "--kill-child", "sleep", "600")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = child.Process.Kill(); _ = child.Wait() })
	// The child of unshare is process 1 of the new namespace.
	var o Mark
	deadline := time.Now().Add(time.Minute)
	for o.PID == 0 && time.Now().Before(deadline) {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", child.Process.Pid))
		if err != nil {
			testns.Skip(t, "/proc/PID/task/TID/children")
		}
		var local int
		if n, _ := fmt.Sscan(string(children), &local); n == 0 {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		start, err := processStart(local)
		if err != nil {
			t.Fatal(err)
		}
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", local))
		if err != nil {
			t.Fatal(err)
		}
		o = Mark{PID: 1, Start: start}
		if _, err := fmt.Sscanf(link, "pid:[%d]", &o.PIDNamespace); err != nil {
			t.Fatal(err)
		}
		got := o.Find()
		if got.Life != Alive || got.LocalPID != local {
			t.Errorf("%+v, want the process %d", got, local)
		}
	}
	if o.PID == 0 {
		t.Fatal("unshare has no child after a minute")
	}
	o.Start++
	want := Unknown
	if pidNamespace() == initialPIDNamespace {
		want = Dead
	}
	if got := o.Find(); got.Life != want || got.LocalPID != 0 {
		t.Errorf("one that started at another time: %+v, want %s", got, want)
	}
}
