// Package testns gives tests network namespaces of their own and decides what
// happens where the machine cannot run a test.
package testns

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/thread"
)

// RequireVar names the environment variable that, set to 1, turns every skip for
// want of a feature into a failure: where a test should run it may not skip.
const RequireVar = "TRACKLESS_REQUIRE_PRIVILEGED"

// Skip ends the test for want of a feature of this machine, which it names.
func Skip(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv(RequireVar) == "1" {
		t.Fatalf(RequireVar+"=1, not possible on this machine: "+format, args...)
	}
	t.Skipf("not possible on this machine: "+format, args...)
}

// Root skips unless the test runs as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "root privileges")
	}
}

// Program skips unless the program is installed.
func Program(t testing.TB, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		Skip(t, "the program "+name)
	}
}

// Enter moves the test's goroutine into a new, empty network namespace with lo
// up, and back at the end of the test. The goroutine stays locked to its
// thread; goroutines that it starts are outside the namespace, child processes
// inside. The namespace goes when the last process in it ends.
func Enter(t testing.TB) netns.NsHandle {
	t.Helper()
	Root(t)
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatalf("get the network namespace of this thread: %v", err)
	}
	ns, err := netns.New()
	if err != nil {
		home.Close()
		runtime.UnlockOSThread()
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() {
		ns.Close()
		if err := netns.Set(home); err != nil {
			// The thread stays locked, so that it ends with the goroutine and
			// no other test lands in the wrong namespace.
			t.Errorf("return to the first network namespace: %v", err)
			return
		}
		home.Close()
		runtime.UnlockOSThread()
	})
	if err := SetLinkUp("lo"); err != nil {
		t.Fatalf("set lo up: %v", err)
	}
	return ns
}

// A Namespace is an empty network namespace with lo up that is gone when the
// test ends. Tests with one each can run in parallel.
type Namespace struct {
	t  testing.TB
	ns netns.NsHandle
}

// New makes a namespace and leaves the test where it is.
func New(t testing.TB) *Namespace {
	t.Helper()
	Root(t)
	n := &Namespace{t: t, ns: netns.None()}
	err := thread.Elsewhere(func() error {
		var err error
		if n.ns, err = netns.New(); err != nil {
			return err
		}
		return SetLinkUp("lo")
	})
	if err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { _ = n.ns.Close() })
	return n
}

// FD returns the file descriptor of the namespace.
func (n *Namespace) FD() int { return int(n.ns) }

// Do runs fn on a thread inside the namespace and waits for it. Sockets that fn
// opens stay in the namespace.
func (n *Namespace) Do(fn func()) {
	n.t.Helper()
	err := thread.Elsewhere(func() error {
		if err := netns.Set(n.ns); err != nil {
			return err
		}
		fn()
		return nil
	})
	if err != nil {
		n.t.Fatalf("enter the namespace: %v", err)
	}
}

// SetLinkUp brings up a link of the thread's network namespace.
func SetLinkUp(name string) error {
	conn, err := rtnetlink.Dial(nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	links, err := conn.Link.List()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Attributes != nil && l.Attributes.Name == name {
			return conn.Link.Set(&rtnetlink.LinkMessage{
				Family: unix.AF_UNSPEC, Type: l.Type, Index: l.Index, Flags: unix.IFF_UP, Change: unix.IFF_UP,
			})
		}
	}
	return os.ErrNotExist
}

// Run runs a program in the thread's network namespace and returns its
// output; the test fails when it does.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	Program(t, name)
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// Feed gives a program a text; the test fails when it does.
func Feed(t testing.TB, text, program string, args ...string) {
	t.Helper()
	Program(t, program)
	cmd := exec.Command(program, args...)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
}
