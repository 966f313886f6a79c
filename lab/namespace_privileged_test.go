//go:build privileged

package lab

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/internal/testwait"
)

// requireNamespaces skips, or fails where privileged tests are required, if
// this process may not make network namespaces.
func requireNamespaces(t *testing.T) {
	t.Helper()
	ns, err := NewNamespace("probe")
	if err == nil {
		err = ns.Close()
	}
	if err != nil {
		testns.Skip(t, "%v", err)
	}
}

func newTestNamespace(t *testing.T) *Namespace {
	t.Helper()
	requireNamespaces(t)
	ns, err := NewNamespace(t.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns
}

func TestNamespaceIsAnotherOne(t *testing.T) {
	ns := newTestNamespace(t)
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var there string
	var links []net.Interface
	err = ns.Do(func() error {
		var err error
		if there, err = os.Readlink("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		links, err = net.Interfaces()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if here == there {
		t.Errorf("Do ran in the process's own namespace %s", here)
	}
	if len(links) != 1 || links[0].Name != "lo" || links[0].Flags&net.FlagUp == 0 {
		t.Errorf("links of a new namespace: %v, want lo alone and up", links)
	}
}

func TestDoReturnsToTheCaller(t *testing.T) {
	ns := newTestNamespace(t)
	broken := errors.New("broken")
	tests := []struct {
		name      string
		fn        func() error
		want      error
		wantPanic string
	}{
		{name: "nil", fn: func() error { return nil }},
		{name: "error", fn: func() error { return broken }, want: broken},
		{name: "panic", fn: func() error { panic("at the disco") }, wantPanic: "at the disco"},
		{name: "goexit", fn: func() error { runtime.Goexit(); return nil }, want: errExited},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			defer func() {
				cause, _ := recover().(string)
				if !strings.Contains(cause, test.wantPanic) || (cause == "") != (test.wantPanic == "") {
					t.Errorf("panicked with %q, want %q", cause, test.wantPanic)
				}
				if test.wantPanic != "" && !strings.Contains(cause, "TestDoReturnsToTheCaller") {
					t.Errorf("the panic does not show where it came from:\n%s", cause)
				}
			}()
			if err := ns.Do(test.fn); !errors.Is(err, test.want) {
				t.Errorf("Do returned %v, want %v", err, test.want)
			}
		})
	}
	eventually(t, func() bool { return len(testns.StrayThreads()) == 0 })
}

func TestChildRunsInsideAndApart(t *testing.T) {
	ns := newTestNamespace(t)
	child, err := ns.Start("sleeper", exec.Command("sleep", "60"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Kill() }()
	var want string
	err = ns.Do(func() error {
		var err error
		want, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.Readlink("/proc/" + strconv.Itoa(child.PID()) + "/ns/net"); err != nil || got != want {
		t.Errorf("the child is in %s (%v), want %s", got, err, want)
	}
	if group, err := syscall.Getpgid(child.PID()); err != nil || group != child.PID() {
		t.Errorf("the child is in process group %d (%v), want its own, %d", group, err, child.PID())
	}
	// The thread that started it must live on: with it the child would go.
	for range 3 {
		if err := ns.Do(func() error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-child.Done():
		t.Error("the child ended while nobody asked it to")
	default:
	}
}

func TestChildStop(t *testing.T) {
	ns := newTestNamespace(t)
	tests := []struct {
		name   string
		script string
		grace  time.Duration
		want   []string // in the error; nil: no error
	}{
		{"obeys", `trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done`, 5 * time.Second, nil},
		{"fails", `trap 'echo cannot; exit 3' TERM; echo ready; while :; do sleep 0.01; done`, 5 * time.Second,
			[]string{"stopped badly", "exit status 3", "cannot"}},
		{"refuses", `trap '' TERM; echo ready; while :; do sleep 0.01; done`, 20 * time.Millisecond,
			[]string{"did not stop within 20ms"}},
		{"ended", `echo ready; echo done with it; exit 1`, 5 * time.Second,
			[]string{"ended by itself", "exit status 1", "done with it"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			child, err := ns.Start(test.name, exec.Command("sh", "-c", test.script))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = child.Kill() }()
			eventually(t, func() bool { return strings.Contains(child.Output(), "ready") })
			if test.name == "ended" {
				<-child.Done()
			}
			err = child.Stop(test.grace)
			if (err == nil) != (test.want == nil) {
				t.Errorf("Stop returned %v", err)
			}
			for _, want := range test.want {
				if err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("Stop returned %q, which lacks %q", err, want)
				}
			}
			select {
			case <-child.Done():
			default:
				t.Error("Stop returned before the child was gone")
			}
		})
	}
}

func TestStartOfNothing(t *testing.T) {
	ns := newTestNamespace(t)
	_, err := ns.Start("ghost", exec.Command("/nonexistent/ghost"))
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "start ghost") {
		t.Errorf("error %v, want one that names the child and the cause", err)
	}
}

// eventually polls until the condition holds.
func eventually(t *testing.T, holds func() bool) {
	t.Helper()
	testwait.True(t, 20*time.Second, "the condition", holds)
}
