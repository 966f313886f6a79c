// Package process has the faults of the server's own process: how it begins and ends,
// how it hangs, and what one client can do to it.
package process

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/internal/testcgroup"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/test/chaos/scene"
)

// Deaths are the ways to end and to begin.
func Deaths() []*scene.Case {
	return []*scene.Case{
		{
			Name: "sigkill", Fault: "SIGKILL, 256 MB resident", Bar: "at most 100 ms of queries, restart 0 lost",
			Faulty: true, ResidentMiB: 256,
			Sabotage: scene.RulesStay,
			Play: func(s *scene.Scene) error {
				if err := s.Fault("killed", s.KillBar()); err != nil {
					return err
				}
				if err := s.Server.Kill(); err != nil {
					return err
				}
				return s.ComeBack(s.KillBar())
			},
		},
		{
			Name: "oom", Fault: "OOM kill by a cgroup limit", Bar: "at most 1.5 s of queries, restart 0 lost",
			Faulty: true, ResidentMiB: 64, Lacking: testcgroup.Lacking,
			Sabotage: scene.RulesStay,
			Play:     playOOM,
		},
		{
			Name: "sigterm", Fault: "SIGTERM under load", Bar: "0 lost",
			Sabotage: scene.RulesStay,
			Play:     func(s *scene.Scene) error { return s.ProveTakeover() },
		},
		{
			Name: "start", Fault: "start under load, TCP connections through kube-dns last", Bar: "0 lost",
			LateStart: true,
			// Before the very first start nobody serves the link-local
			// addresses; after any other the failover table does.
			Prepare: func(s *scene.Scene) error {
				if err := s.StartAttached(context.Background()); err != nil {
					return err
				}
				return s.Server.Close()
			},
			Sabotage: scene.Sabotage{
				What:  "the exemption of connections that are tracked already",
				Fails: scene.FailLost, At: "attached", Apply: scene.LeaveRules,
			},
			Play: playStart,
		},
		{
			Name: "restart", Fault: "SIGTERM and start at once", Bar: "0 lost",
			Sabotage: scene.RulesStay,
			Play:     playRestart,
		},
		{
			Name: "second-instance", Fault: "second instance on the same addresses, started and outliving the first", Bar: "0 lost",
			Sabotage: scene.Sabotage{
				What:  "the care of the one that stops first for the addresses that the other needs",
				Fails: scene.FailLost, At: "first stopped", Apply: scene.TakeAddressesAndRoutes,
			},
			Play: playSecondInstance,
		},
	}
}

// playRestart stops the server and starts it at once.
func playRestart(s *scene.Scene) error {
	if err := s.Fault("restarted", scene.NoLoss); err != nil {
		return err
	}
	if err := s.Server.Close(); err != nil {
		return err
	}
	if err := s.Start(); err != nil {
		return err
	}
	s.Steady("after", lab.Trackless, scene.Outage)
	return nil
}

// playStart starts the server under load.
func playStart(s *scene.Scene) error {
	if err := s.Fault("started", scene.NoLoss); err != nil {
		return err
	}
	if err := s.Start(); err != nil {
		return err
	}
	s.Steady("after", lab.Trackless, time.Second)
	return nil
}

// playOOM has the kernel end the server for want of memory.
func playOOM(s *scene.Scene) error {
	if err := s.LimitMemory(s.Server, 256<<20); err != nil {
		return err
	}
	if err := s.Fault("out of memory", scene.LeaseBar); err != nil {
		return err
	}
	// The answer never comes: the kernel kills it on the way.
	if err := command(s, "grow 1024"); err == nil {
		return errors.New("a gigabyte was touched under a limit of 256 MiB")
	}
	if err := s.Ended(s.Server); err != nil {
		return err
	}
	if how := s.Server.Stop(0); how == nil || !strings.Contains(how.Error(), "signal: killed") {
		return fmt.Errorf("the kernel did not kill it: %w", how)
	}
	return s.ComeBack(scene.LeaseBar)
}

func playSecondInstance(s *scene.Scene) error {
	if err := s.Fault("second started", scene.NoLoss); err != nil {
		return err
	}
	second, err := s.Launch(s.Corefile(true, scene.SecondMetricsAddress))
	if err != nil {
		return err
	}
	if err := s.AwaitAttached(second, scene.SecondMetricsAddress); err != nil {
		return err
	}
	s.Steady("both", lab.Trackless, scene.Outage)
	if err := s.Fault("first stopped", scene.NoLoss); err != nil {
		return err
	}
	if err := s.Server.Close(); err != nil {
		return err
	}
	if err := s.Reach("first stopped"); err != nil {
		return err
	}
	s.Server = second
	s.Steady("second alone", lab.Trackless, scene.Outage)
	return s.ProveTakeover()
}
