package rules

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/test/chaos/scene"
)

// lockHeld is how long another program holds the lock.
const lockHeld = 30 * time.Second

// Locks are what the lock of the legacy programs can do; those of nft have none.
func Locks(backend string) []*scene.Case {
	if backend != scene.IPTablesLegacy {
		return nil
	}
	return []*scene.Case{
		{
			Name: "lock-held", Fault: "started while another holds the xtables lock for 30 s", Bar: "0 lost, attached within 2 s of its release",
			LateStart: true,
			Prepare: func(s *scene.Scene) error {
				if err := ownLock(s); err != nil || s.Sabotaged {
					return err
				}
				if err := s.StartAttached(context.Background()); err != nil {
					return err
				}
				return s.Server.Close()
			},
			Sabotage: scene.Sabotage{What: "trackless", Fails: scene.FailResponder, Server: scene.Nothing},
			Play:     playLockHeld,
		},
	}
}

func playLockHeld(s *scene.Scene) error {
	release, err := holdLock()
	if err != nil {
		return err
	}
	defer release()
	if err := s.Fault("started", scene.NoLoss); err != nil {
		return err
	}
	if !s.Sabotaged {
		if s.Server, err = s.Launch(s.Corefile(true, scene.MetricsAddress)); err != nil {
			return err
		}
	}
	s.Steady("lock held", lab.KubeDNS, lockHeld)
	if !s.Sabotaged {
		select {
		case <-s.Server.Done():
			return fmt.Errorf("it ended while the lock was held:\n%s", s.Server.Output())
		default:
		}
	}
	if err := s.Fault("lock released", scene.NoLoss); err != nil {
		return err
	}
	release()
	s.Let(2 * time.Second)
	s.Steady("after", lab.Trackless, scene.Outage)
	if s.Server == nil {
		return nil // sabotaged
	}
	return s.ProveTakeover()
}

// lockVar names the file that the programs lock. All network namespaces share
// the usual one, so the node of the scene gets one of its own.
const lockVar = "XTABLES_LOCKFILE"

// ownLock gives the programs that are started from now on another lock.
func ownLock(s *scene.Scene) error {
	directory, err := os.MkdirTemp("", "trackless-chaos-lock-")
	if err != nil {
		return err
	}
	s.Cleanups = append(s.Cleanups, func() error {
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
