// Package scene plays a fault on a lab node under load: the [Case], the [Scene] in
// which it is played, the [Timeline] of the load with its phases, and the [Result].
// Package chaos lists the cases.
package scene

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/internal/testcgroup"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
)

// LinkName is the link that notrack uses by default.
const LinkName = "nodelocaldns"

// linkLocalDNS6 is the IPv6 listen address that no Service owns, as
// NodeLocal DNSCache needs one on nodes with IPv6.
var linkLocalDNS6 = netip.MustParseAddr("fd00:169:254:20::10")

// ListenAddresses are all at which the cache listens: two of Services and two
// that no Service owns.
var ListenAddresses = []netip.Addr{lab.ClusterDNS4, lab.ClusterDNS6, lab.LinkLocalDNS4, linkLocalDNS6}

// MetricsAddress and SecondMetricsAddress are where two servers of a node serve
// their metrics, FaultAddress where the directive of package fault listens.
const (
	MetricsAddress       = "127.0.0.1:9253"
	SecondMetricsAddress = "127.0.0.1:9254"
	FaultAddress         = "127.0.0.1:9990"

	// totalRate is the load of a case in queries a second.
	totalRate = 1000

	// Patience is how long a scene waits for what must happen but has no bar
	// of its own.
	Patience = 10 * time.Second
)

// rateOf is the part of the load that clients of a kind send together.
var rateOf = map[clients.StreamKind]float64{
	clients.FreshPort: 0.4 * totalRate, clients.SinglePort: 0.3 * totalRate,
	clients.ShortTCP: 0.1 * totalRate, clients.LongTCP: 0.2 * totalRate,
}

// A Scene is a case being played.
type Scene struct {
	*Case
	Node     *lab.Node
	Server   *lab.Server
	Programs *Programs

	Sabotaged bool
	baseline  Dump
	streams   *clients.Streams
	timeline  Timeline
	Result    *Result
	servers   []*lab.Server
	Cleanups  []func() error

	ExtraStreams []clients.Stream  // clients besides those of every case
	Forger       *lab.Namespace    // a pod that sends what it wants
	Container    *testcgroup.Group // that of LimitMiB
	Environment  string            // VARIABLE=VALUE for the server in it
}

func (s *Scene) run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, s.cleanup()) }()
	program, err := s.Programs.Product()
	if err != nil {
		return err
	}
	s.Node, err = lab.NewNode(ctx, lab.Options{Program: program})
	if err != nil {
		return err
	}
	s.Cleanups = append(s.Cleanups, s.Node.Close)
	if err := s.primeBackend(); err != nil {
		return fmt.Errorf("prime the node: %w", err)
	}
	if s.Prime != nil {
		if err := s.Prime(s); err != nil {
			return fmt.Errorf("prime the node: %w", err)
		}
	}
	if err := s.takeBaseline(ctx); err != nil {
		return err
	}
	if s.Prepare != nil {
		if err := s.Prepare(s); err != nil {
			return fmt.Errorf("prepare the node: %w", err)
		}
	}
	first := lab.KubeDNS
	if !s.LateStart {
		first = lab.Trackless
		if err := s.StartAttached(ctx); err != nil {
			return err
		}
	}
	if s.Warm != nil {
		if err := s.Warm(s); err != nil {
			return errors.Join(fmt.Errorf("before the load: %w", err), s.outputs())
		}
	}
	s.timeline.Streams = append(s.loadStreams(), s.ExtraStreams...)
	s.timeline.RulesGone = s.takesRules()
	s.streams = clients.StartStreams(s.timeline.Streams, 0)
	playErr := s.play(first)
	s.closePhase(time.Now())
	queries, err := s.streams.Stop()
	s.timeline.Queries = queries
	if err := errors.Join(playErr, err); err != nil {
		s.timeline.Judge(s.Result)
		return errors.Join(err, s.outputs())
	}
	return s.conclude(ctx)
}

func (s *Scene) takeBaseline(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	s.baseline, err = TakeSettledDump(ctx, s.Node.Namespace)
	return err
}

// play gives the caches and connections a moment, so that every steady phase
// is one, and plays the case.
func (s *Scene) play(first lab.Responder) error {
	s.Await(first)
	s.Steady("before", first, 700*time.Millisecond)
	return s.Play(s)
}

// conclude stops what still runs and judges.
func (s *Scene) conclude(ctx context.Context) error {
	s.timeline.Judge(s.Result)
	for _, server := range s.servers {
		select {
		case <-server.Done():
		default:
			if err := server.Close(); err != nil {
				s.Result.Fail(FailRun, "stop at the end: %v", err)
			}
		}
	}
	if s.Undo != nil {
		if err := s.Undo(s); err != nil {
			return fmt.Errorf("undo the fault: %w", err)
		}
	}
	left, err := leftEntries(s.Node, s.timeline.trackedFlows(s.podOf), s.takesRules())
	if err != nil {
		return err
	}
	s.Result.EntriesLeft = len(left)
	if len(left) > 0 {
		o := left[0].Original
		s.Result.Fail(FailEntries, "%d entries for DNS that should have been untracked, the first %s from %s port %d to %s port %d, %s",
			len(left), o.Proto, o.Src, o.SrcPort, o.Dst, o.DstPort, left[0].State())
	}
	if s.Sabotaged {
		return nil
	}
	used, err := s.compare("after the end", exceptionsStopped)
	if err != nil {
		return err
	}
	if slices.Contains(used, exceptFailover.Name) || slices.Contains(used, exceptAccept.Name) {
		program, err := s.Programs.Product()
		if err != nil {
			return err
		}
		if _, err := RunProgram(s.Node.Namespace, "", program, "rules", "remove"); err != nil {
			s.Result.Fail(FailLeftover, "%v", err)
		}
		_, err = s.compare("after `trackless rules remove`", nil)
		return err
	}
	return ctx.Err()
}

func (s *Scene) compare(when string, exceptions []Exception) ([]string, error) {
	now, err := TakeDump(s.Node.Namespace)
	if err != nil {
		return nil, err
	}
	return s.baseline.Compare(now, exceptions, when, s.Result), nil
}

// outputs is what the servers wrote, to explain why a scene broke off.
func (s *Scene) outputs() error {
	var errs []error
	for i, server := range s.servers {
		errs = append(errs, fmt.Errorf("server %d wrote last:\n%s", i+1, server.Output()))
	}
	return errors.Join(errs...)
}

func (s *Scene) cleanup() error {
	var errs []error
	for _, server := range s.servers {
		errs = append(errs, server.Kill())
	}
	for _, cleanup := range slices.Backward(s.Cleanups) {
		errs = append(errs, cleanup())
	}
	return errors.Join(errs...)
}

// StartAttached starts the server of the case, or what the sabotage puts in its place,
// and waits until it is attached.
func (s *Scene) StartAttached(ctx context.Context) error {
	if s.Sabotaged && s.Sabotage.Server != nil {
		return s.Sabotage.Server(s)
	}
	var err error
	if s.Server, err = s.Launch(s.Corefile(true, MetricsAddress)); err != nil {
		return err
	}
	// Not before: the binary may have to be built first.
	ctx, cancel := context.WithTimeout(ctx, 2*Patience)
	defer cancel()
	return s.Server.AwaitAttached(ctx, MetricsAddress)
}

// Start starts the server of the case under load and waits until every client
// is answered by it.
func (s *Scene) Start() error {
	if err := s.StartAttached(context.Background()); err != nil {
		return err
	}
	s.Await(lab.Trackless)
	return s.Reach("attached")
}

// Launch starts a server with the Corefile.
func (s *Scene) Launch(corefile string) (*lab.Server, error) {
	binary := s.Programs.Product
	if s.Faulty {
		binary = s.Programs.Faulty
	}
	path, err := binary()
	if err != nil {
		return nil, err
	}
	if s.LimitMiB > 0 {
		if path, err = s.contain(path); err != nil {
			return nil, err
		}
	}
	server, err := s.Node.Namespace.StartServer("trackless", path, corefile)
	if err != nil {
		return nil, err
	}
	s.servers = append(s.servers, server)
	return server, nil
}

// Corefile is that of the node's cache. Its answers live for less than an hour,
// which tells them from those of kube-dns.
func (s *Scene) Corefile(notrack bool, metrics string) string {
	var options strings.Builder
	if notrack {
		options.WriteString(s.Directive())
	}
	if s.KernelHits {
		options.WriteString("    fastpath {\n        kernel on\n    }\n")
	}
	if s.WriteTimeout != "" {
		fmt.Fprintf(&options, "    timeouts {\n        write %s\n    }\n", s.WriteTimeout)
	}
	if s.Faulty {
		fmt.Fprintf(&options, "    fault %s %d\n", FaultAddress, s.ResidentMiB)
	}
	var listen []string
	for _, addr := range ListenAddresses {
		listen = append(listen, addr.String())
	}
	return fmt.Sprintf(`.:53 {
    errors
    bind %s
%s    cache {
        success 9984 60
        denial 9984 5
    }
    forward . %s %s
    prometheus %s
}
`, strings.Join(listen, " "), options.String(), lab.UpstreamDNS4, lab.UpstreamDNS6, metrics)
}

// loadStreams are clients of every kind from two pods and the node to every
// listen address.
func (s *Scene) loadStreams() []clients.Stream {
	var origins []*lab.Namespace
	if !s.FromPods {
		origins = append(origins, s.Node.Namespace)
	}
	for _, pod := range s.Node.Pods {
		origins = append(origins, pod.Namespace)
	}
	targets := ListenAddresses
	if s.Sabotaged && s.Sabotage.Instead != "" {
		targets = s.Node.ClusterDNS()
	}
	var streams []clients.Stream
	kinds := s.Kinds
	if kinds == nil {
		kinds = clients.StreamKinds()
	}
	for _, kind := range kinds {
		for _, target := range targets {
			for _, origin := range origins {
				streams = append(streams, clients.Stream{
					Kind: kind, From: origin, Target: target,
					Rate: rateOf[kind] / float64(len(origins)*len(targets)),
				})
			}
		}
	}
	return streams
}

func (s *Scene) podOf(ns *lab.Namespace) *lab.Pod {
	for _, pod := range s.Node.Pods {
		if pod.Namespace == ns {
			return pod
		}
	}
	return nil
}

// Steady begins a phase in which the responder answers every query, and lets
// it last.
func (s *Scene) Steady(name string, want lab.Responder, last time.Duration) {
	s.SteadyPhase(Phase{Name: name, Want: want}, last)
}

// SteadyPhase begins a steady phase and lets it last.
func (s *Scene) SteadyPhase(phase Phase, last time.Duration) {
	phase.Want = s.instead(phase.Want)
	s.Begin(phase)
	time.Sleep(last)
}

// Fault begins a transition: directly after it the fault is made. Queries may
// be lost until the bar is over.
func (s *Scene) Fault(name string, bar time.Duration) error {
	if err := s.Reach("fault"); err != nil {
		return err
	}
	s.Begin(Phase{Name: name, Bar: bar})
	return nil
}

// Let lets time pass until so long after the transition began.
func (s *Scene) Let(since time.Duration) {
	time.Sleep(time.Until(s.timeline.Phases[len(s.timeline.Phases)-1].From.Add(since)))
}

// Begin ends the phase under way and begins the next.
func (s *Scene) Begin(phase Phase) {
	phase.From = time.Now()
	s.closePhase(phase.From)
	s.timeline.Phases = append(s.timeline.Phases, phase)
}

func (s *Scene) closePhase(at time.Time) {
	if n := len(s.timeline.Phases); n > 0 {
		s.timeline.Phases[n-1].To = cmp.Or(s.timeline.Phases[n-1].To, at)
	}
}

// Reach applies the sabotage if this is its place.
func (s *Scene) Reach(place string) error {
	if !s.Sabotaged || s.Sabotage.Apply == nil || cmp.Or(s.Sabotage.At, "fault") != place {
		return nil
	}
	apply := s.Sabotage.Apply
	sabotage := s.Sabotage
	sabotage.Apply = nil // once
	c := *s.Case
	c.Sabotage, s.Case = sabotage, &c
	if err := apply(s); err != nil {
		return fmt.Errorf("sabotage: %w", err)
	}
	return nil
}

// instead is who answers where the responder should.
func (s *Scene) instead(responder lab.Responder) lab.Responder {
	if s.Sabotaged && responder == lab.Trackless {
		return cmp.Or(s.Sabotage.Instead, responder)
	}
	return responder
}

// Await waits until the responder answers every client. That it does not is a
// broken promise, with which the case goes on.
func (s *Scene) Await(responder lab.Responder) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := s.streams.AwaitResponder(ctx, s.instead(responder)); err != nil {
		s.Result.Fail(FailResponder, "%v", err)
	}
}

// Pause has no client ask anything for a time, in which the node becomes calm, until
// Resume.
func (s *Scene) Pause(last time.Duration) {
	s.streams.Pause()
	time.Sleep(last)
}

// Resume ends a pause.
func (s *Scene) Resume() { s.streams.Resume() }

// Ended waits until the server has ended by itself.
func (s *Scene) Ended(server *lab.Server) error {
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	select {
	case <-server.Done():
		return nil
	case <-timer.C:
		return fmt.Errorf("trackless (pid %d) did not end within %s; its last output:\n%s", server.PID(), Patience, server.Output())
	}
}
