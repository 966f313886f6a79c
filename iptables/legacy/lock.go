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

// ErrNoLock is matched by the error of a change that would need the xtables lock
// where its file is not there. Programs of iptables-legacy make the file, so that
// where legacy tables have rules a missing file is one of the host that a
// container does not see.
var ErrNoLock = errors.New("the xtables lock, " + defaultLockFile + " of the host, is not to be seen here")

const defaultLockFile = "/run/xtables.lock"

// lockFile is the file that iptables locks, by its own variable elsewhere
// (iptables(8), since 1.8.8).
func lockFile() string {
	if path := os.Getenv("XTABLES_LOCKFILE"); path != "" {
		return path
	}
	return defaultLockFile
}

// CanLock returns nil where Delete can take the lock, else an error that matches
// [ErrNoLock].
func CanLock() error {
	if _, err := os.Stat(lockFile()); errors.Is(err, fs.ErrNotExist) {
		return ErrNoLock
	}
	return nil
}

// lockWait is how long the lock is waited for, lockPoll the time between two looks.
const (
	lockWait = time.Second
	lockPoll = 20 * time.Millisecond
)

// lock takes the xtables lock and returns what gives it back.
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
