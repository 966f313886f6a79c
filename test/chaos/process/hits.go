package process

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
	"github.com/trackless-dns/trackless/test/chaos/scene"
)

// KernelHits are deaths, hangs and changes of a process whose cached answers the kernel
// gives. Pods ask for names that the kernel knows, and may not lose a query.
func KernelHits() []*scene.Case {
	cases := []*scene.Case{
		{
			Name: "hits-sigkill", Fault: "SIGKILL, hits in the kernel",
			Sabotage: scene.RulesStay,
			Play: func(s *scene.Scene) error {
				if err := s.Fault("killed", scene.NoLoss); err != nil {
					return err
				}
				if err := s.Server.Kill(); err != nil {
					return err
				}
				return s.ComeBack(s.KillBar())
			},
		},
		{
			Name: "hits-sigstop", Fault: "SIGSTOP for 3 s, SIGCONT, hits in the kernel",
			Sabotage: answeredInTheEnd,
			Play: func(s *scene.Scene) error {
				if err := s.Fault("stopped", scene.NoLoss); err != nil {
					return err
				}
				if err := s.Server.Signal(syscall.SIGSTOP); err != nil {
					return err
				}
				return hangAndRecover(s, func() error { return s.Server.Signal(syscall.SIGCONT) }, nil)
			},
		},
		{
			Name: "hits-reload", Fault: "reload, hits in the kernel",
			Sabotage: scene.Sabotage{
				What: "the kernel's answers and the rules, in the Corefile that is loaded", Fails: scene.FailResponder, At: "reload",
				Apply: func(s *scene.Scene) error {
					return s.Server.Reload(s.Corefile(false, scene.MetricsAddress))
				},
			},
			Play: playReload,
		},
		{
			Name: "hits-restart", Fault: "SIGTERM and start at once, hits in the kernel",
			Sabotage: scene.RulesStay,
			Play:     playRestart,
		},
	}
	for _, c := range cases {
		c.Bar = "0 lost of the hits"
		c.KernelHits, c.FromPods, c.Kinds = true, true, []clients.StreamKind{clients.FreshPort, clients.SinglePort}
		c.Warm = askUntilHits
	}
	return cases
}

// playReload loads a Corefile that answers the same.
func playReload(s *scene.Scene) error {
	// It counts as a steady phase: we answer throughout.
	s.Begin(scene.Phase{Name: "reloaded", Want: lab.Trackless})
	if err := s.Reach("reload"); err != nil {
		return err
	}
	if !s.Sabotaged {
		if err := s.Server.Reload(strings.Replace(s.Corefile(true, scene.MetricsAddress), "    errors\n", "    errors {\n    }\n", 1)); err != nil {
			return err
		}
	}
	time.Sleep(2 * time.Second)
	return s.ProveTakeover()
}

// askUntilHits asks for all names of the load until the kernel has all answers: one is
// announced for one listen address a second.
func askUntilHits(s *scene.Scene) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*scene.Patience)
	defer cancel()
	const records = "coredns_fastpath_records"
	var n float64
	want := float64(len(scene.ListenAddresses) * clients.StreamNames * 2)
	for {
		for _, addr := range scene.ListenAddresses {
			for name := range clients.StreamNames {
				for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
					query := new(dns.Msg).SetQuestion(lab.HostName(name).Text, qtype)
					if _, err := s.Node.Pods[0].Query(ctx, lab.UDP, addr, query); err != nil {
						return fmt.Errorf("%w; %s is %g, want %g", err, records, n, want)
					}
				}
			}
		}
		metrics, err := s.Server.Metrics(ctx, scene.MetricsAddress)
		if err != nil {
			return err
		}
		n, _ = metrics.Sum(records)
		if n >= want {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s is %g, want %g: the kernel does not have all answers", records, n, want)
		}
	}
}
