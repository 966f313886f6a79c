package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/internal/testcgroup"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
	"github.com/trackless-dns/trackless/test/flood/contained"
)

const (
	dnsPort = 53

	floodPorts = 1024
	cachedRate = 200         // queries a second of the other pod
	patience   = time.Second // of the other pod
	afterwards = 4 * time.Second
	sampling   = 50 * time.Millisecond
)

// measurement is one flood.
type measurement struct {
	*contained.Container
	upstream string
	rate     int
	last     time.Duration
}

func (m *measurement) run(ctx context.Context) (r *result, err error) {
	m.Limits = testcgroup.Limits{Memory: containerMiB << 20}
	if err := m.Open(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	return m.flood(ctx)
}

// flood plays it: the other pod's names become cached, the upstream changes, the
// flood comes and goes.
func (m *measurement) flood(ctx context.Context) (*result, error) {
	cached := clients.StartStreams([]clients.Stream{{
		Kind: clients.FreshPort, From: m.Node.Pods[1].Namespace, Target: lab.ClusterDNS4, Rate: cachedRate,
	}}, patience)
	stopCached := sync.OnceValues(cached.Stop)
	defer func() { _, _ = stopCached() }()
	time.Sleep(time.Second)
	if err := m.Node.KubeDNS.Kill(); err != nil {
		return nil, err
	}
	up, err := openUpstream(m.Node.DNSPod, m.upstream)
	if err != nil {
		return nil, err
	}
	defer func() { _ = up.close() }()

	r := &result{Server: m.Name, Upstream: m.upstream}
	watched, stopWatch := context.WithCancel(ctx)
	defer stopWatch()
	var watching sync.WaitGroup
	watching.Go(func() { m.watch(watched, r) })

	flood := &clients.Flood{From: m.Node.Pods[0].Namespace, Target: lab.ClusterDNS4, Rate: m.rate, Ports: floodPorts}
	began := time.Now()
	if err := flood.Start(); err != nil {
		return nil, err
	}
	select {
	case <-time.After(m.last):
	case <-ctx.Done():
	}
	var floodErr error
	r.Flood, floodErr = flood.Stop()
	ended := time.Now()
	select {
	case <-time.After(afterwards):
	case <-ctx.Done():
	}
	queries, err := stopCached()
	stopWatch()
	watching.Wait()
	if err := errors.Join(floodErr, err, ctx.Err()); err != nil {
		return nil, err
	}
	r.count(queries[0], began, ended)
	if err := m.take(ctx, r); err != nil {
		return nil, err
	}
	return r, nil
}

// count adds what became of the other pod's queries.
func (r *result) count(sent []clients.Sent, began, ended time.Time) {
	var latencies []time.Duration
	for _, s := range sent {
		lost := s.By != lab.Trackless
		switch {
		case s.At.Before(began):
		case s.At.Before(ended):
			r.Queries++
			if !lost {
				r.Answers++
				latencies = append(latencies, s.Latency)
			}
		case lost:
			r.RecoveredMS = s.At.Sub(ended).Milliseconds()
		}
	}
	r.LostPercent = 100 * float64(r.Queries-r.Answers) / float64(max(r.Queries, 1))
	if slices.Sort(latencies); len(latencies) > 0 {
		r.P90MS = float64(latencies[len(latencies)*9/10].Microseconds()) / 1000
	}
}

// take notes what is known only when the flood is over.
func (m *measurement) take(ctx context.Context, r *result) error {
	if info, err := os.Stat(m.Log); err == nil {
		r.LogBytes = int(info.Size())
	}
	killed, err := m.Group.Killed()
	if err != nil {
		return err
	}
	if r.Killed = killed > 0; r.Killed {
		r.RecoveredMS = -1
		return nil
	}
	if !m.NoTrack {
		return nil
	}
	r.Lapses, err = m.Lapses(ctx)
	return err
}

// watch notes the highest of what goes up and down until the context ends.
func (m *measurement) watch(ctx context.Context, r *result) {
	table, err := conntrack.Dial(&conntrack.Config{NetNS: m.Node.Namespace.FD()})
	if err != nil {
		return
	}
	defer func() { _ = table.Close() }()
	filter := conntrack.Filter{
		Protocols: []conntrack.Protocol{conntrack.UDP},
		DstPorts:  []conntrack.PortRange{{First: dnsPort, Last: dnsPort}},
	}
	tick := time.NewTicker(sampling)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		r.PeakMiB = max(r.PeakMiB, contained.Memory(m.Running.PID(), "VmHWM"))
		if n%10 != 0 {
			continue
		}
		entries := 0
		if err := table.Dump(filter, func(e *conntrack.Entry) error {
			if e.Original.Dst == lab.ClusterDNS4 {
				entries++
			}
			return nil
		}); err == nil {
			r.Entries = max(r.Entries, entries)
		}
		scrape, cancel := context.WithTimeout(ctx, time.Second)
		if metrics, err := m.Running.Metrics(scrape, contained.MetricsAddress); err == nil {
			if n, ok := metrics.Sum("go_goroutines"); ok {
				r.Goroutines = max(r.Goroutines, int(n))
			}
		}
		cancel()
	}
}
