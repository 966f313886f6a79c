package lab

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab/internal/privilege"
)

// errExited is what Do returns when its function ended the goroutine instead
// of returning, as testing.T's FailNow does.
var errExited = errors.New("the function left by runtime.Goexit (t.FailNow belongs in the test's own goroutine)")

// A Namespace is a network namespace without a name, held by a file
// descriptor: when the last descriptor is closed and the last process in it
// has ended, the kernel removes it with all its links, rules and conntrack
// entries. Its methods may be called from several goroutines, but not after
// Close.
type Namespace struct {
	name   string
	handle netns.NsHandle
}

// NewNamespace makes an empty network namespace with its loopback device up.
// The name appears in errors only.
func NewNamespace(name string) (*Namespace, error) {
	ns := &Namespace{name: name, handle: netns.None()}
	err := onThread(func() error {
		handle, err := netns.New()
		ns.handle = handle
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", name, privilege.Explain(err))
	}
	if err := ns.linkUp("lo"); err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return ns, nil
}

// Name is the name the namespace was made with.
func (ns *Namespace) Name() string { return ns.name }

// FD is the descriptor that holds the namespace, in the form that netlink,
// nftables and conntrack configurations take as NetNS. It stays the
// Namespace's.
func (ns *Namespace) FD() int { return int(ns.handle) }

// Do runs fn on a thread of its own inside the namespace and returns its
// error. Sockets that fn opens and processes that it starts stay in the
// namespace; goroutines that it starts do not run there. A panic of fn is
// raised again in the caller, with the stack it came from.
func (ns *Namespace) Do(fn func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns.handle); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", ns.name, privilege.Explain(err))
		}
		return fn()
	})
}

// Close gives the namespace up. Closing twice is harmless.
func (ns *Namespace) Close() error {
	if !ns.handle.IsOpen() {
		return nil
	}
	if err := ns.handle.Close(); err != nil {
		return fmt.Errorf("close network namespace %s: %w", ns.name, err)
	}
	return nil
}

// onThread runs fn on a goroutine locked to its OS thread, and puts the thread
// back into the namespace it came from. Where that fails the thread ends with
// the goroutine, so that no other goroutine ever runs in the wrong namespace.
func onThread(fn func() error) (err error) {
	var panicked string
	<-spawnLocked(func() {
		origin, originErr := netns.Get()
		if originErr != nil {
			runtime.UnlockOSThread()
			err = fmt.Errorf("read this thread's network namespace (is /proc mounted?): %w", originErr)
			return
		}
		defer func() {
			if netns.Set(origin) == nil {
				runtime.UnlockOSThread()
			}
			_ = origin.Close()
		}()
		defer func() {
			if cause := recover(); cause != nil {
				panicked = fmt.Sprintf("%v\n\nin a network namespace, from:\n%s", cause, debug.Stack())
			}
		}()
		err = errExited
		err = fn()
	})
	if panicked != "" {
		panic(panicked)
	}
	return err
}

// spawnLocked runs fn on a goroutine locked to an OS thread of its own, which
// ends with it unless fn unlocks it. It is never the first thread of the
// process: that one does not end but sleeps for ever, in whatever namespace it
// is then, and /proc/self shows its namespace as that of the process.
func spawnLocked(fn func()) (done <-chan struct{}) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// While this thread is taken the next attempt gets another one.
			<-spawnLocked(fn)
			runtime.UnlockOSThread()
			return
		}
		fn()
	}()
	return ended
}
