package legacy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// ErrNoLock is matched by the error of a change that needs the xtables lock if its file
// is missing. Programs of iptables-legacy make the file. So if legacy tables have rules,
// the file exists on the host and the container does not have it.
var ErrNoLock = errors.New("the xtables lock of the host, " + defaultLockFile + ", is not visible here")

const defaultLockFile = "/run/xtables.lock"

// lockFile returns the file that iptables locks. The variable is that of iptables
// (iptables(8), since 1.8.8).
func lockFile() string {
	if path := os.Getenv("XTABLES_LOCKFILE"); path != "" {
		return path
	}
	return defaultLockFile
}

// CanLock returns nil if Delete can take the lock, else an error that matches
// [ErrNoLock].
func CanLock() error {
	if _, err := os.Stat(lockFile()); errors.Is(err, fs.ErrNotExist) {
		return ErrNoLock
	}
	return nil
}

// lockWait bounds the wait for the lock, lockPoll is the time between two attempts.
const (
	lockWait = time.Second
	lockPoll = 20 * time.Millisecond
)

// lock takes the xtables lock.
func lock(wait time.Duration) (release func(), err error) {
	file, err := os.Open(lockFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoLock
	}
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(wait); ; time.Sleep(lockPoll) {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = file.Close() }, nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			return nil, errors.Join(fmt.Errorf("lock %s: %w", file.Name(), err), file.Close())
		case time.Now().After(deadline):
			return nil, errors.Join(fmt.Errorf("another program has held the xtables lock (%s) for %s: %w", file.Name(), wait, iptables.ErrBusy), file.Close())
		}
	}
}
