// Package thread runs functions that change what belongs to a thread.
package thread

import (
	"errors"
	"runtime"

	"github.com/vishvananda/netns"
)

// Proc is the process's directory below /proc as the calling thread sees it:
// /proc/net is that of the namespace of the process's first thread.
const Proc = "/proc/thread-self"

// Elsewhere runs fn on a thread that may change its network namespace, and
// returns to where it was: a thread that went back can serve other goroutines
// again, also if it is the first of the process, whose namespace is that of
// /proc/self.
func Elsewhere(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		err = fn()
		if back := netns.Set(home); back != nil {
			// Locked, the thread ends with the goroutine.
			done <- errors.Join(err, back)
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}
