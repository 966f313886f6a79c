package process

import (
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
	"github.com/trackless-dns/trackless/test/chaos/scene"
)

// Hangs are the ways to be there and yet not answer.
func Hangs() []*scene.Case {
	const bar = "at most 1.5 s of queries, recovery 0 lost"
	return []*scene.Case{
		{
			Name: "sigstop", Fault: "SIGSTOP for 3 s, SIGCONT", Bar: bar,
			Sabotage: answeredInTheEnd,
			Play: func(s *scene.Scene) error {
				if err := s.Fault("stopped", scene.LeaseBar); err != nil {
					return err
				}
				if err := s.Server.Signal(syscall.SIGSTOP); err != nil {
					return err
				}
				return hangAndRecover(s, func() error { return s.Server.Signal(syscall.SIGCONT) }, nil)
			},
		},
		{
			Name: "deadlock", Fault: "deadlock: a lock held inside `cache`", Bar: bar,
			Faulty: true, Sabotage: answeredInTheEnd,
			Play: func(s *scene.Scene) error {
				if err := s.Fault("deadlocked", scene.LeaseBar); err != nil {
					return err
				}
				if err := command(s, "hold chain"); err != nil {
					return err
				}
				return hangAndRecover(s, func() error { return command(s, "release chain") }, nil)
			},
		},
		{
			Name: "stuck-reader", Fault: "CoreDNS's reader of one listener stuck", Bar: bar,
			Faulty: true, Sabotage: scene.RulesStay,
			Play: func(s *scene.Scene) error {
				if err := s.Fault("stuck", scene.LeaseBar); err != nil {
					return err
				}
				if err := command(s, "hold reader "+lab.ClusterDNS4.String()); err != nil {
					return err
				}
				return hangAndRecover(s, func() error { return command(s, "release reader") }, func(stream clients.Stream) bool {
					return stream.Target == lab.ClusterDNS4 && stream.Kind.Protocol() == lab.UDP
				})
			},
		},
	}
}

// answeredInTheEnd has clients wait for a process that hangs: nothing need be lost.
var answeredInTheEnd = scene.Sabotage{What: scene.RulesStay.What, Fails: scene.FailResponder, Apply: scene.LeaveRules}

// IdleHangs are hangs of which nobody knows when the first query comes.
func IdleHangs() []*scene.Case {
	const bar = "the first query 1.5 s later and all after it by kube-dns, 0 lost"
	// A connection from before the hang is reset by kube-dns when its client asks.
	kinds := []clients.StreamKind{clients.FreshPort, clients.SinglePort, clients.ShortTCP}
	return []*scene.Case{
		{
			Name: "sigstop-idle", Fault: "SIGSTOP while nobody asks", Bar: bar,
			Kinds: kinds, Sabotage: answeredInTheEnd,
			Play: func(s *scene.Scene) error {
				signal := func(sig syscall.Signal) func() error { return func() error { return s.Server.Signal(sig) } }
				return hangWhileIdle(s, signal(syscall.SIGSTOP), signal(syscall.SIGCONT))
			},
		},
		{
			Name: "deadlock-idle", Fault: "deadlock while nobody asks", Bar: bar,
			Kinds: kinds, Faulty: true,
			Sabotage: answeredInTheEnd,
			Play: func(s *scene.Scene) error {
				return hangWhileIdle(s, func() error { return command(s, "hold chain") }, func() error { return command(s, "release chain") })
			},
		},
	}
}

// idleFor is how long nobody asks: longer than it takes a process to find its node
// idle.
const idleFor = 7 * time.Second

// hangWhileIdle lets a process hang while nobody asks, and clients ask again when the
// bar is over.
func hangWhileIdle(s *scene.Scene, hang, end func() error) error {
	s.Pause(idleFor)
	if err := s.Fault("hung, and nobody asks", scene.LeaseBar); err != nil {
		return err
	}
	if err := hang(); err != nil {
		return err
	}
	s.Let(scene.LeaseBar)
	s.Begin(scene.Phase{Name: "the first queries", Want: lab.KubeDNS})
	s.Resume()
	time.Sleep(scene.Outage)
	if err := s.Fault("recovering", scene.NoLoss); err != nil {
		return err
	}
	if err := end(); err != nil {
		return err
	}
	s.Await(lab.Trackless)
	s.Steady("after", lab.Trackless, 700*time.Millisecond)
	return nil
}

// hangAndRecover follows the beginning of a hang: kube-dns answers once the
// bar is over, and the cache again, by itself, when the hang has ended.
func hangAndRecover(s *scene.Scene, end func() error, only func(clients.Stream) bool) error {
	s.Let(scene.LeaseBar)
	s.SteadyPhase(scene.Phase{Name: "hung", Want: lab.KubeDNS, Only: only}, 3*time.Second-scene.LeaseBar)
	if err := s.Fault("recovering", scene.NoLoss); err != nil {
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
func command(s *scene.Scene, command string) error {
	conn, err := s.Dial(scene.FaultAddress)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(scene.Patience)); err != nil {
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
