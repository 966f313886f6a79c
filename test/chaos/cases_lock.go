package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab"
)

// lockHeld is how long another program holds the lock.
const lockHeld = 30 * time.Second

// locks are what the lock of the legacy programs can do; those of nft have none.
func locks(backend string) []*Case {
	if backend != IPTablesLegacy {
		return nil
	}
	return []*Case{
		{
			Name: "lock-held", Fault: "started while another holds the xtables lock for 30 s", Bar: "0 lost, attached within 2 s of its release",
			LateStart: true,
			Prepare: func(s *Scene) error {
				if err := ownLock(s); err != nil || s.sabotaged {
					return err
				}
				if err := s.start(context.Background()); err != nil {
					return err
				}
				return s.Server.Close()
			},
			Sabotage: Sabotage{What: "trackless", Fails: FailResponder, Server: nothing},
			Play:     playLockHeld,
		},
	}
}

func playLockHeld(s *Scene) error {
	release, err := holdLock()
	if err != nil {
		return err
	}
	defer release()
	if err := s.Fault("started", noLoss); err != nil {
		return err
	}
	if !s.sabotaged {
		if s.Server, err = s.launch(s.corefile(true, metricsAddress)); err != nil {
			return err
		}
	}
	s.Steady("lock held", lab.KubeDNS, lockHeld)
	if !s.sabotaged {
		select {
		case <-s.Server.Done():
			return fmt.Errorf("it ended while the lock was held:\n%s", s.Server.Output())
		default:
		}
	}
	if err := s.Fault("lock released", noLoss); err != nil {
		return err
	}
	release()
	s.Let(2 * time.Second)
	s.Steady("after", lab.Trackless, outage)
	if s.Server == nil {
		return nil // sabotaged
	}
	return s.proveTakeover()
}

// lockVar names the file that the programs lock. All network namespaces share
// the usual one, so the node of the scene gets one of its own.
const lockVar = "XTABLES_LOCKFILE"

// ownLock gives the programs that are started from now on another lock.
func ownLock(s *Scene) error {
	directory, err := os.MkdirTemp("", "trackless-chaos-lock-")
	if err != nil {
		return err
	}
	s.cleanups = append(s.cleanups, func() error {
		return errors.Join(os.Unsetenv(lockVar), os.RemoveAll(directory))
	})
	return os.Setenv(lockVar, filepath.Join(directory, "xtables.lock"))
}

// holdLock takes the lock until release is called, also more than once.
func holdLock() (release func(), err error) {
	file, err := os.OpenFile(os.Getenv(lockVar), os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		return nil, err
	}
	return func() { _ = file.Close() }, nil
}
