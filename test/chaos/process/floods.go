package process

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/trackless-dns/trackless/internal/testcgroup"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
	"github.com/trackless-dns/trackless/test/chaos/scene"
)

const (
	// A container as our manifests make one, and a flood that it must survive.
	containerMiB = 128
	floodRate    = 10_000 // queries a second
	floodPorts   = 512
	floodLasts   = 4 * time.Second

	// deafClients do not read, deafTimeout is how long a write to them may take.
	deafClients = 50
	deafTimeout = time.Second
)

// Floods are what one client does to all others.
func Floods() []*scene.Case {
	return []*scene.Case{
		{
			Name: "flood", Fault: "10,000 cold names a second for 4 s from one pod, upstream dead, 128 MiB",
			Bar:      "lost only while it lasts, no lapse of the lease, not killed",
			LimitMiB: containerMiB, Lacking: testcgroup.Lacking,
			Sabotage: scene.Sabotage{
				What:  "the bound of the queries under way, which follows from the memory limit",
				Fails: scene.FailKilled, Server: withoutMemoryLimit,
			},
			Play: playFlood,
		},
		{
			Name: "deaf-tcp", Fault: "50 TCP clients that ask and do not read", Bar: "0 lost, no lapse of the lease, their connections closed",
			WriteTimeout: deafTimeout.String(),
			Sabotage: scene.Sabotage{
				What:  "the deadline of writes to TCP clients",
				Fails: scene.FailHeld, Server: withoutWriteTimeout,
			},
			Play: playDeaf,
		},
	}
}

func playFlood(s *scene.Scene) error {
	flood := &clients.Flood{From: s.Node.Pods[0].Namespace, Target: lab.ClusterDNS4, Rate: floodRate, Ports: floodPorts}
	if err := s.Node.KubeDNS.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	if err := s.Fault("flooded", floodLasts+time.Second); err != nil {
		return err
	}
	if err := flood.Start(); err != nil {
		return err
	}
	s.Let(floodLasts)
	_, err := flood.Stop()
	if err := scene.FirstError(func() error { return err }, func() error { return s.Node.KubeDNS.Signal(syscall.SIGCONT) }); err != nil {
		return err
	}
	killed, err := s.Container.Killed()
	if err != nil {
		return err
	}
	if killed > 0 {
		s.Result.Fail(scene.FailKilled, "the kernel has killed trackless for want of memory")
		return nil
	}
	if err := s.NoLapses(); err != nil {
		return err
	}
	s.Let(floodLasts + time.Second)
	s.Steady("after", lab.Trackless, scene.Outage)
	return s.ProveTakeover()
}

func playDeaf(s *scene.Scene) error {
	if err := s.Fault("not read", scene.NoLoss); err != nil {
		return err
	}
	deaf, err := clients.NewDeaf(s.Node.Pods[0].Namespace, lab.ClusterDNS4, deafClients)
	if err != nil {
		return err
	}
	defer func() { _ = deaf.Close() }()
	// Each answer has the time; those that fit into the buffers took none.
	for deadline := time.Now().Add(deafTimeout + scene.Patience/2); deaf.Held() > 0 && time.Now().Before(deadline); {
		time.Sleep(100 * time.Millisecond)
	}
	if held := deaf.Held(); held > 0 {
		s.Result.Fail(scene.FailHeld, "%d of %d connections are held", held, deafClients)
	}
	if err := s.NoLapses(); err != nil {
		return err
	}
	s.Steady("after", lab.Trackless, scene.Outage)
	return s.ProveTakeover()
}

// withoutMemoryLimit serves in the same container, which it knows nothing of.
func withoutMemoryLimit(s *scene.Scene) error {
	s.Environment = "GOMEMLIMIT=off"
	return serveInstead(s, s.Corefile(true, scene.MetricsAddress))
}

func withoutWriteTimeout(s *scene.Scene) error {
	timeout := fmt.Sprintf("write %s\n", deafTimeout)
	return serveInstead(s, strings.Replace(s.Corefile(true, scene.MetricsAddress), timeout, "write 1h\n", 1))
}

func serveInstead(s *scene.Scene, corefile string) (err error) {
	if s.Server, err = s.Launch(corefile); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*scene.Patience)
	defer cancel()
	return s.Server.AwaitAttached(ctx, scene.MetricsAddress)
}
