// Package nstest makes throw-away network namespaces for tests that need a
// connection tracking table of their own. Tests with a namespace each can run
// in parallel, and nothing is left behind: a namespace without a name lives as
// long as the descriptors that refer to it.
package nstest

import (
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A Namespace is a new network namespace with the loopback device up.
type Namespace struct {
	t  testing.TB
	ns netns.NsHandle
}

// New makes a namespace that is gone when the test ends. Without the privilege
// to make one the test is skipped, or fails if TRACKLESS_REQUIRE_PRIVILEGED=1.
func New(t testing.TB) *Namespace {
	t.Helper()
	n := &Namespace{t: t, ns: netns.None()}
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread ends with the goroutine, and with it
		// whatever else it carried.
		runtime.LockOSThread()
		n.ns, err = netns.New()
	}()
	<-done
	if err != nil {
		Unavailable(t, "a network namespace needs CAP_SYS_ADMIN: %v", err)
	}
	t.Cleanup(func() { _ = n.ns.Close() })
	n.Do(func() { err = loopbackUp() })
	if err != nil {
		t.Fatalf("set lo up: %v", err)
	}
	return n
}

// FD returns the file descriptor of the namespace.
func (n *Namespace) FD() int { return int(n.ns) }

// Do runs fn on a thread inside the namespace and waits for it. Sockets that fn
// opens stay in the namespace.
func (n *Namespace) Do(fn func()) {
	n.t.Helper()
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = netns.Set(n.ns); err == nil {
			fn()
		}
	}()
	<-done
	if err != nil {
		n.t.Fatalf("enter the namespace: %v", err)
	}
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// Unavailable ends a test for lack of a feature of this machine: skipped, or
// failed if TRACKLESS_REQUIRE_PRIVILEGED=1.
func Unavailable(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("TRACKLESS_REQUIRE_PRIVILEGED") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}
