package scene

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/lab"
)

// Bars: how long queries may be lost after a fault.
const (
	killBar   = 100 * time.Millisecond
	LeaseBar  = 1500 * time.Millisecond
	RepairBar = time.Second
	NoLoss    = 0
)

// Outage is how long the steady phase lasts in which kube-dns answers.
const Outage = 1200 * time.Millisecond

// ComeBack follows a death without warning: kube-dns has taken over when the
// bar is over, what is left behind is harmless, and a restart costs nothing.
func (s *Scene) ComeBack(bar time.Duration) error {
	s.Let(bar)
	s.Steady("dead", lab.KubeDNS, Outage)
	if !s.Sabotaged {
		if _, err := s.compare("while dead", s.exceptionsDead()); err != nil {
			return err
		}
	}
	if err := s.Fault("restarted", NoLoss); err != nil {
		return err
	}
	if err := s.Start(); err != nil {
		return err
	}
	s.Steady("after", lab.Trackless, 700*time.Millisecond)
	return nil
}

// ProveTakeover stops the server in an orderly way, upon which kube-dns
// answers, without a loss.
func (s *Scene) ProveTakeover() error {
	if err := s.Fault("stopped", NoLoss); err != nil {
		return err
	}
	if err := s.Server.Close(); err != nil {
		return err
	}
	s.Steady("without trackless", lab.KubeDNS, Outage)
	return nil
}

// linkOf finds the link that holds the address.
func (s *Scene) linkOf(addr netip.Addr) (string, error) {
	out, err := RunProgram(s.Node.Namespace, "", "ip", "-oneline", "address", "show", "to", addr.String())
	if err != nil {
		return "", err
	}
	fields := strings.Fields(out)
	if len(fields) < 2 {
		return "", fmt.Errorf("no link holds %s", addr)
	}
	return fields[1], nil
}

// Dial connects from inside the node.
func (s *Scene) Dial(address string) (net.Conn, error) {
	var conn net.Conn
	err := s.Node.Namespace.Do(func() error {
		var err error
		conn, err = net.DialTimeout("tcp", address, Patience)
		return err
	})
	return conn, err
}

// AwaitAttached waits until the server has its rules in force.
func (s *Scene) AwaitAttached(server *lab.Server, metrics string) error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	return server.AwaitAttached(ctx, metrics)
}

// NoLapses looks whether the lease has lapsed.
func (s *Scene) NoLapses() error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	metrics, err := s.Server.Metrics(ctx, MetricsAddress)
	if err != nil {
		return err
	}
	const lapses = "coredns_notrack_lease_lapses_total"
	switch lapsed, ok := metrics.Sum(lapses); {
	case !ok:
		s.Result.Fail(FailLapse, "there is no metric %s", lapses)
	case lapsed > 0:
		s.Result.Fail(FailLapse, "the lease lapsed %g times", lapsed)
	}
	return nil
}

// FirstError runs the steps until one fails.
func FirstError(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// Disturb makes a fault that may cost a second and after which the cache
// answers on, and shows then that kube-dns could take over.
func Disturb(s *Scene, name string, fault func() error) error {
	if err := s.Fault(name, RepairBar); err != nil {
		return err
	}
	if err := fault(); err != nil {
		return err
	}
	s.Let(RepairBar)
	s.Steady("repaired", lab.Trackless, Outage)
	return s.ProveTakeover()
}

// DeleteAddress deletes the address from the link that holds it.
func DeleteAddress(s *Scene, addr netip.Addr) error {
	link, err := s.linkOf(addr)
	if err != nil {
		return err
	}
	return RunAll(s.Node.Namespace, fmt.Sprintf("ip address delete %s/%d dev %s", addr, addr.BitLen(), link))
}
