package chaos

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/lab"
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

// linkOf finds the link that holds the address.
func (s *Scene) linkOf(addr netip.Addr) (string, error) {
	out, err := run(s.Node.Namespace, "", "ip", "-oneline", "address", "show", "to", addr.String())
	if err != nil {
		return "", err
	}
	fields := strings.Fields(out)
	if len(fields) < 2 {
		return "", fmt.Errorf("no link holds %s", addr)
	}
	return fields[1], nil
}

// dial connects from inside the node.
func (s *Scene) dial(address string) (net.Conn, error) {
	var conn net.Conn
	err := s.Node.Namespace.Do(func() error {
		var err error
		conn, err = net.DialTimeout("tcp", address, patience)
		return err
	})
	return conn, err
}

func (s *Scene) awaitAttached(server *lab.Server, metrics string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return server.AwaitAttached(ctx, metrics)
}

// noLapses looks whether the lease has lapsed.
func (s *Scene) noLapses() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	metrics, err := s.Server.Metrics(ctx, metricsAddress)
	if err != nil {
		return err
	}
	const lapses = "coredns_notrack_lease_lapses_total"
	switch lapsed, ok := metrics.Sum(lapses); {
	case !ok:
		s.result.fail(FailLapse, "there is no metric %s", lapses)
	case lapsed > 0:
		s.result.fail(FailLapse, "the lease lapsed %g times", lapsed)
	}
	return nil
}

// firstError runs the steps until one fails.
func firstError(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// disturb makes a fault that may cost a second and after which the cache
// answers on, and shows then that kube-dns could take over.
func disturb(s *Scene, name string, fault func() error) error {
	if err := s.Fault(name, repairBar); err != nil {
		return err
	}
	if err := fault(); err != nil {
		return err
	}
	s.Let(repairBar)
	s.Steady("repaired", lab.Trackless, outage)
	return s.proveTakeover()
}

func deleteAddress(s *Scene, addr netip.Addr) error {
	link, err := s.linkOf(addr)
	if err != nil {
		return err
	}
	return runAll(s.Node.Namespace, fmt.Sprintf("ip address delete %s/%d dev %s", addr, addr.BitLen(), link))
}
