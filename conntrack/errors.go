package conntrack

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var (
	// ErrUnavailable is returned where this kernel has no connection tracking,
	// or not the part of it that the call needs: a module is not loaded or was
	// not built.
	ErrUnavailable = errors.New("not available in this kernel")

	// ErrInterrupted is returned by Dump after it delivered what the kernel
	// sent, if the table was rebuilt meanwhile: entries may be missing, or have
	// been delivered twice. Asking again is the remedy.
	ErrInterrupted = errors.New("the table was rebuilt while it was read; entries may be missing or repeated")

	// ErrNotFound is returned by Delete for an entry that is gone.
	ErrNotFound = errors.New("no such entry")
)

// noSubsystem turns the error that nfnetlink gives for a subsystem that is not
// there (EINVAL, nfnetlink_rcv_msg) into ErrUnavailable. It is for requests in
// which nothing else can be invalid.
func noSubsystem(err error) error {
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: %w (load the module nf_conntrack_netlink)", ErrUnavailable, err)
	}
	return err
}

// opError adds to an error from the kernel what was tried and, for the usual
// causes, the remedy. errors.Is finds the cause, and ErrUnavailable.
func opError(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("conntrack: %s: %w (needs CAP_NET_ADMIN in the user namespace that owns this network namespace)", op, err)
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("conntrack: %s: %w: %w (load the module nf_conntrack_netlink)", op, ErrUnavailable, err)
	}
	return fmt.Errorf("conntrack: %s: %w", op, err)
}
