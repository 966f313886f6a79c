package chaos

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/trackless-dns/trackless/internal/testcgroup"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
)

// Bars (DESIGN.md, guarantees 3 and 4; what a repair may take).
const (
	killBar   = 100 * time.Millisecond
	leaseBar  = 1500 * time.Millisecond
	repairBar = time.Second
	noLoss    = 0
)

// outage is how long the steady phase lasts in which kube-dns answers.
const outage = 1200 * time.Millisecond

// Cases are all faults, in the order of the table.
func Cases() []*Case {
	return slices.Concat(deaths(), hangs(), floods(), rules(), firewalls(), links(), forgeries(), predecessors())
}

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
				if err := s.command("grow 1024"); err == nil {
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

// comeBack follows a death without warning: kube-dns has taken over when the
// bar is over, what is left behind is harmless, and a restart costs nothing.
func (s *Scene) comeBack(bar time.Duration) error {
	s.Let(bar)
	s.Steady("dead", lab.KubeDNS, outage)
	if !s.sabotaged {
		if _, err := s.compare("while dead", s.exceptionsDead()); err != nil {
			return err
		}
	}
	if err := s.Fault("restarted", noLoss); err != nil {
		return err
	}
	if err := s.Start(); err != nil {
		return err
	}
	s.Steady("after", lab.Trackless, 700*time.Millisecond)
	return nil
}

// proveTakeover stops the server in an orderly way, upon which kube-dns
// answers, without a loss.
func (s *Scene) proveTakeover() error {
	if err := s.Fault("stopped", noLoss); err != nil {
		return err
	}
	if err := s.Server.Close(); err != nil {
		return err
	}
	s.Steady("without trackless", lab.KubeDNS, outage)
	return nil
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

// hangs are the ways to be there and yet not answer.
func hangs() []*Case {
	const bar = "at most 1.5 s of queries, recovery 0 lost"
	return []*Case{
		{
			Name: "sigstop", Fault: "SIGSTOP for 3 s, SIGCONT", Bar: bar,
			Sabotage: rulesStay,
			Play: func(s *Scene) error {
				if err := s.Fault("stopped", leaseBar); err != nil {
					return err
				}
				if err := s.Server.Signal(syscall.SIGSTOP); err != nil {
					return err
				}
				return s.hangAndRecover(func() error { return s.Server.Signal(syscall.SIGCONT) }, nil)
			},
		},
		{
			Name: "deadlock", Fault: "deadlock: a lock held inside `cache`", Bar: bar,
			Faulty: true,
			// Nothing need be lost: those who waited are answered in the end.
			Sabotage: Sabotage{What: rulesStay.What, Fails: FailResponder, Apply: leaveRules},
			Play: func(s *Scene) error {
				if err := s.Fault("deadlocked", leaseBar); err != nil {
					return err
				}
				if err := s.command("hold chain"); err != nil {
					return err
				}
				return s.hangAndRecover(func() error { return s.command("release chain") }, nil)
			},
		},
		{
			Name: "stuck-reader", Fault: "CoreDNS's reader of one listener stuck", Bar: bar,
			Faulty: true, Sabotage: rulesStay,
			Play: func(s *Scene) error {
				if err := s.Fault("stuck", leaseBar); err != nil {
					return err
				}
				if err := s.command("hold reader " + lab.ClusterDNS4.String()); err != nil {
					return err
				}
				return s.hangAndRecover(func() error { return s.command("release reader") }, func(stream clients.Stream) bool {
					return stream.Target == lab.ClusterDNS4 && stream.Kind.Protocol() == lab.UDP
				})
			},
		},
	}
}

// hangAndRecover follows the beginning of a hang: kube-dns answers once the
// bar is over, and the cache again, by itself, when the hang has ended.
func (s *Scene) hangAndRecover(end func() error, only func(clients.Stream) bool) error {
	s.Let(leaseBar)
	s.steady(Phase{Name: "hung", Want: lab.KubeDNS, Only: only}, 3*time.Second-leaseBar)
	if err := s.Fault("recovering", noLoss); err != nil {
		return err
	}
	if err := end(); err != nil {
		return err
	}
	s.Await(lab.Trackless)
	s.Steady("after", lab.Trackless, 700*time.Millisecond)
	return nil
}

// command tells the server's fault directive what to do.
func (s *Scene) command(command string) error {
	conn, err := s.dial(faultAddress)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(conn, command); err != nil {
		return err
	}
	reply := make([]byte, 512)
	n, err := conn.Read(reply)
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if answer := strings.TrimSpace(string(reply[:n])); answer != "ok" {
		return fmt.Errorf("%s: %s", command, answer)
	}
	return nil
}

func deleteAddress(s *Scene, addr netip.Addr) error {
	link, err := s.linkOf(addr)
	if err != nil {
		return err
	}
	return runAll(s.Node.Namespace, fmt.Sprintf("ip address delete %s/%d dev %s", addr, addr.BitLen(), link))
}
