package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/internal/testcgroup"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/test/flood/contained"
)

const (
	containerMiB  = 128
	maxConcurrent = 1000 // as in our manifests
	quietTime     = 10 * time.Second
	sampling      = 50 * time.Millisecond
)

// measurement is one flood at one server.
type measurement struct {
	*contained.Container
	upstream *upstream
	kind     string
	protocol lab.Protocol
	rate     int
	last     time.Duration
}

func newMeasurement(s contained.Server, o options, kind string, protocol lab.Protocol) *measurement {
	m := &measurement{kind: kind, protocol: protocol, rate: o.rate, last: o.last}
	s.MaxConcurrent = maxConcurrent
	m.Container = &contained.Container{
		Server: s, Lab: o.program, Limits: testcgroup.Limits{Memory: containerMiB << 20}, WithoutKubeDNS: true,
		BeforeServe: func(n *lab.Node) (err error) {
			m.upstream, err = openUpstream(n.DNSPod, kind)
			return err
		},
	}
	return m
}

func (m *measurement) run(ctx context.Context) (r *result, err error) {
	defer func() {
		if m.upstream != nil {
			err = errors.Join(err, m.upstream.close())
		}
	}()
	if err := m.Open(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	return m.flood(ctx)
}

// flood plays it: the other pod asks alone, and then beside the flood.
func (m *measurement) flood(ctx context.Context) (*result, error) {
	other := &pod{from: m.Node.Pods[1].Namespace, target: netip.AddrPortFrom(lab.ClusterDNS4, lab.DNSPort), protocol: m.protocol}
	if err := other.warm(ctx); err != nil {
		return nil, err
	}
	before, err := other.ask(ctx, min(quietTime, m.last))
	if err != nil {
		return nil, err
	}
	r := &result{Server: m.Name, Upstream: m.kind, Protocol: string(m.protocol)}
	r.IdleMiB = contained.Memory(m.Running.PID(), "VmRSS")
	r.before(before)
	if m.kind == closed {
		if err := m.upstream.close(); err != nil {
			return nil, err
		}
	}
	watched, stopWatch := context.WithCancel(ctx)
	defer stopWatch()
	var watching sync.WaitGroup
	began := time.Now()
	watching.Go(func() { m.watch(watched, r, began) })

	f := newFlood(m.Node.Pods[0].Namespace, lab.ClusterDNS4, m.protocol, m.rate)
	if err := f.Start(); err != nil {
		return nil, err
	}
	during, err := other.ask(ctx, m.last)
	sent, floodErr := f.Stop()
	stopWatch()
	watching.Wait()
	if err := errors.Join(err, floodErr); err != nil {
		return nil, err
	}
	r.Flood = sent
	if err := m.figures(ctx, r); err != nil {
		return nil, err
	}
	r.during(during)
	killed, err := m.Group.Killed()
	r.Killed = killed > 0
	return r, err
}

// figures notes what became of the queries before they reached an upstream.
func (m *measurement) figures(ctx context.Context, r *result) error {
	err := m.Node.Namespace.Do(func() error {
		r.Buffer = (&sockets.Dropped{Proc: "/proc"}).Count()
		return nil
	})
	if err != nil || !m.NoTrack {
		return err
	}
	metrics, err := m.Running.Metrics(ctx, contained.MetricsAddress)
	if err != nil {
		return err
	}
	shed, _ := metrics.Sum("coredns_fairness_shed_total")
	r.Shed = int(shed)
	return nil
}

// watch notes what goes up and down, and when the log names the source of the flood.
func (m *measurement) watch(ctx context.Context, r *result, began time.Time) {
	source := m.Node.Pods[0].Addrs[0].String()
	tick := time.NewTicker(sampling)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		r.PeakMiB = max(r.PeakMiB, contained.Memory(m.Running.PID(), "VmRSS"))
		r.Descriptors = max(r.Descriptors, descriptors(m.Running.PID()))
		if n%10 == 0 && r.NamedAfterMS == 0 && m.names(source) {
			r.NamedAfterMS = time.Since(began).Milliseconds()
		}
	}
}

// names reports whether the log names a client.
func (m *measurement) names(source string) bool {
	text, err := os.ReadFile(m.Log)
	return err == nil && strings.Contains(string(text), "client "+source)
}

func descriptors(pid int) int {
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0
	}
	return len(all)
}

// before notes the pod's queries without a flood.
func (r *result) before(all []asked) {
	_, uncached := split(all)
	r.QuietP99MS = milliseconds(percentile(uncached.latencies, 99))
	r.QuietLost = uncached.lost + uncached.failed
}

// during notes the pod's queries beside the flood.
func (r *result) during(all []asked) {
	cached, uncached := split(all)
	r.Cached, r.CachedLost = cached.all, cached.lost+cached.failed
	r.CachedP99MS = milliseconds(percentile(cached.latencies, 99))
	r.Uncached, r.UncachedLost, r.UncachedFailed = uncached.all, uncached.lost, uncached.failed
	r.UncachedP50MS = milliseconds(percentile(uncached.latencies, 50))
	r.UncachedP99MS = milliseconds(percentile(uncached.latencies, 99))
}

// tally is what became of queries of a kind.
type tally struct {
	all, lost, failed int
	latencies         []time.Duration
}

func split(all []asked) (cached, uncached tally) {
	for _, a := range all {
		t := &uncached
		if a.cached {
			t = &cached
		}
		t.all++
		switch {
		case a.latency == 0:
			t.lost++
		case a.rcode != dns.RcodeSuccess:
			t.failed++
		default:
			t.latencies = append(t.latencies, a.latency)
		}
	}
	return cached, uncached
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
