package chaos

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/internal/testcgroup"
	"github.com/trackless-dns/trackless/lab"
)

// deaths are the ways to end and to begin.
func deaths() []*Case {
	return []*Case{
		{
			Name: "sigkill", Fault: "SIGKILL, 256 MB resident", Bar: "at most 100 ms of queries, restart 0 lost",
			Faulty: true, ResidentMiB: 256,
			Sabotage: rulesStay,
			Play: func(s *Scene) error {
				if err := s.Fault("killed", s.killBar()); err != nil {
					return err
				}
				if err := s.Server.Kill(); err != nil {
					return err
				}
				return s.comeBack(s.killBar())
			},
		},
		{
			Name: "oom", Fault: "OOM kill by a cgroup limit", Bar: "at most 1.5 s of queries, restart 0 lost",
			Faulty: true, ResidentMiB: 64, Lacking: testcgroup.Lacking,
			Sabotage: rulesStay,
			Play: func(s *Scene) error {
				if err := s.limitMemory(s.Server, 256<<20); err != nil {
					return err
				}
				if err := s.Fault("out of memory", leaseBar); err != nil {
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
				return s.comeBack(leaseBar)
			},
		},
		{
			Name: "sigterm", Fault: "SIGTERM under load", Bar: "0 lost",
			Sabotage: rulesStay,
			Play:     func(s *Scene) error { return s.proveTakeover() },
		},
		{
			Name: "start", Fault: "start under load, TCP connections through kube-dns last", Bar: "0 lost",
			LateStart: true,
			// Before the very first start nobody serves the link-local
			// addresses; after any other the failover table does.
			Prepare: func(s *Scene) error {
				if err := s.start(context.Background()); err != nil {
					return err
				}
				return s.Server.Close()
			},
			Sabotage: Sabotage{
				What:  "the exemption of connections that are tracked already",
				Fails: FailLost, At: "attached", Apply: leaveRules,
			},
			Play: func(s *Scene) error {
				if err := s.Fault("started", noLoss); err != nil {
					return err
				}
				if err := s.Start(); err != nil {
					return err
				}
				s.Steady("after", lab.Trackless, time.Second)
				return nil
			},
		},
		{
			Name: "restart", Fault: "SIGTERM and start at once", Bar: "0 lost",
			Sabotage: rulesStay,
			Play: func(s *Scene) error {
				if err := s.Fault("restarted", noLoss); err != nil {
					return err
				}
				if err := s.Server.Close(); err != nil {
					return err
				}
				if err := s.Start(); err != nil {
					return err
				}
				s.Steady("after", lab.Trackless, outage)
				return nil
			},
		},
		{
			Name: "second-instance", Fault: "second instance on the same addresses, started and outliving the first", Bar: "0 lost",
			Sabotage: Sabotage{
				What:  "the care of the one that stops first for the addresses that the other needs",
				Fails: FailLost, At: "first stopped", Apply: takeAddressesAndRoutes,
			},
			Play: playSecondInstance,
		},
	}
}

func playSecondInstance(s *Scene) error {
	if err := s.Fault("second started", noLoss); err != nil {
		return err
	}
	second, err := s.launch(s.corefile(true, secondMetricsAddress))
	if err != nil {
		return err
	}
	if err := s.awaitAttached(second, secondMetricsAddress); err != nil {
		return err
	}
	s.Steady("both", lab.Trackless, outage)
	if err := s.Fault("first stopped", noLoss); err != nil {
		return err
	}
	if err := s.Server.Close(); err != nil {
		return err
	}
	if err := s.reach("first stopped"); err != nil {
		return err
	}
	s.Server = second
	s.Steady("second alone", lab.Trackless, outage)
	return s.proveTakeover()
}
