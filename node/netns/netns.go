// Package netns finds the network namespaces of a node and runs functions inside
// one of them.
package netns

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/thread"
)

// A Handle is an open network namespace.
type Handle struct{ ns netns.NsHandle }

// Open opens a network namespace by a name of ip-netns(8), a process id, or the
// path of a file that refers to it.
func Open(name string) (Handle, error) {
	const names = "(a name of `ip netns list`, a process id, or a path such as /proc/1/ns/net)"
	file := path(name)
	h, err := openFile(file)
	if err != nil {
		return Handle{}, fmt.Errorf("network namespace %q: %w %s", name, err, names)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(h.ns), &st); err == nil && st.Type != unix.NSFS_MAGIC {
		h.Close()
		return Handle{}, fmt.Errorf("network namespace %q: %s is no namespace %s", name, file, names)
	}
	return h, nil
}

func openFile(path string) (Handle, error) {
	ns, err := netns.GetFromPath(path)
	return Handle{ns}, err
}

// path returns the file that refers to the namespace of that name.
func path(name string) string {
	if _, err := strconv.Atoi(name); err == nil {
		return filepath.Join("/proc", name, "ns/net")
	}
	if strings.Contains(name, "/") {
		return name
	}
	return filepath.Join("/run/netns", name)
}

// Close closes the file; a namespace that nothing else holds ends with it.
func (h Handle) Close() { _ = h.ns.Close() }

// Do runs fn on a thread inside the namespace and returns its error, or an
// *EnterError if it could not be entered.
func (h Handle) Do(fn func() error) error {
	return thread.Elsewhere(func() error {
		if err := netns.Set(h.ns); err != nil {
			return &EnterError{err}
		}
		return fn()
	})
}

// An EnterError says why a namespace could not be entered.
type EnterError struct{ err error }

func (e *EnterError) Error() string {
	return fmt.Sprintf("enter the network namespace: %v (needs CAP_SYS_ADMIN)", e.err)
}

func (e *EnterError) Unwrap() error { return e.err }
