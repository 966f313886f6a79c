package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
)

// bench is a node with instances that replace each other.
type bench struct {
	settings
	ctx     context.Context
	node    *lab.Node
	limited programs
	current *instance
	started int // instances
	conn    *conntrack.Conn
	random  *rand.Rand
}

// way is how an instance is replaced.
type way string

const (
	replaced        way = "replaced"           // the successor attaches, and the predecessor is stopped
	predecessorDies way = "predecessor killed" // while the successor starts, or when it is attached
	successorDies   way = "successor killed"   // likewise
	cold            way = "cold"               // as replaced, with warm off
)

// wayOf spreads the ways over the rounds. The last one is cold, for comparison.
func wayOf(round, rounds int) way {
	switch {
	case round > rounds:
		return cold
	case round%5 == 3:
		return successorDies
	case round%5 == 0:
		return predecessorDies
	}
	return replaced
}

func measure(ctx context.Context, s settings) (r *Result, err error) {
	limited, err := limit(s.program)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, limited.remove()) }()
	node, err := lab.NewNode(ctx, lab.Options{Program: s.program})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	b := &bench{settings: s, ctx: ctx, node: node, limited: limited, random: rand.New(rand.NewPCG(1, 2))}
	if b.conn, err = conntrack.Dial(&conntrack.Config{NetNS: node.Namespace.FD()}); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.conn.Close()) }()
	if b.current, err = b.start(pathOf(1, s.rounds), ""); err != nil {
		return nil, err
	}
	if err := b.attached(b.current); err != nil {
		return nil, err
	}
	began, before := time.Now(), used()
	load := clients.StartStreams(streams(node, s.rate, s.names), 2*time.Second)
	probes := b.startProbes()
	r = &Result{Rate: s.rate, Names: s.names}
	r.Rounds, err = b.rounds(began)
	r.Probes, r.probed = probes.stop()
	sent, stopErr := load.Stop()
	r.Generator = (used() - before).Seconds() / time.Since(began).Seconds()
	if err := errors.Join(err, stopErr); err != nil {
		return nil, err
	}
	r.assign(sent, began, s.rate)
	r.assignProbes()
	if err := b.current.Close(); err != nil {
		return nil, err
	}
	return r, node.Namespace.Do(func() error { return r.End.read(node.ClusterDNS()) })
}

// used returns the CPU time of this process, of its threads and not of its children.
func used() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // fails for another argument only
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (b *bench) rounds(began time.Time) (all []*Round, err error) {
	if err := b.wait(time.Until(began.Add(b.warmUp))); err != nil {
		return nil, err
	}
	for n := 1; n <= b.settings.rounds+1; n++ {
		r := &Round{Round: n, Way: wayOf(n, b.settings.rounds), Path: pathOf(n, b.settings.rounds)}
		if err := b.round(r); err != nil {
			return nil, fmt.Errorf("round %d, %s: %w", n, r.Way, err)
		}
		all = append(all, r)
		if r.Way == predecessorDies {
			// Until caches and ledger are as full as before.
			if err := b.wait(b.warmUp); err != nil {
				return nil, err
			}
		}
		fmt.Fprintf(os.Stderr, "%d/%d %s, %s: %s\n", n, b.settings.rounds+1, r.Way, r.Path, r.Start)
	}
	return all, nil
}

// round makes one replacement.
func (b *bench) round(r *Round) error {
	before, err := b.upstream()
	if err != nil {
		return err
	}
	if err := b.wait(hold); err != nil {
		return err
	}
	if r.UpstreamBefore, err = b.upstreamSince(before, hold); err != nil {
		return err
	}
	if r.AvoidedBefore, err = b.value("coredns_notrack_entries_avoided"); err != nil {
		return err
	}
	entries, err := b.entries()
	if err != nil {
		return err
	}
	r.begin = time.Now()
	if err := b.replace(r); err != nil {
		return err
	}
	if before, err = b.upstream(); err != nil {
		return err
	}
	if r.AvoidedAfter, err = b.value("coredns_notrack_entries_avoided"); err != nil {
		return err
	}
	if err := b.wait(hold); err != nil {
		return err
	}
	if r.UpstreamAfter, err = b.upstreamSince(before, hold); err != nil {
		return err
	}
	r.end = time.Now()
	if r.Lapses, err = b.value("coredns_notrack_lease_lapses_total"); err != nil {
		return err
	}
	if r.KernelHits, err = b.kernelHits(); err != nil {
		return err
	}
	return b.leftOver(r, entries)
}

// replace makes another instance the current one, unless it dies.
func (b *bench) replace(r *Round) error {
	options := ""
	if r.Way == cold {
		options = "warm off"
	}
	next, err := b.start(r.Path, options)
	if err != nil {
		return err
	}
	switch r.Way {
	case successorDies:
		r.survivor = b.current.path
		return errors.Join(b.untilDeath(r, next), next.Kill())
	case predecessorDies:
		if err := errors.Join(b.untilDeath(r, next), b.current.Kill()); err != nil {
			return err
		}
	}
	if err := b.attached(next); err != nil {
		return err
	}
	r.attached = time.Now()
	if err := b.state(r, next); err != nil {
		return err
	}
	r.Start = warmLine.FindString(next.Output())
	if r.Way != predecessorDies {
		if err := b.current.Close(); err != nil {
			return err
		}
	}
	b.current = next
	r.survivor = r.Path
	return nil
}

// state notes what the successor took.
func (b *bench) state(r *Round, next *instance) error {
	page, err := next.Metrics(b.ctx, next.metrics)
	if err != nil {
		return err
	}
	r.StateBytes, _ = page.Sum("coredns_notrack_warm_start_bytes")
	r.StateSeconds, _ = page.Sum("coredns_notrack_warm_start_seconds")
	return nil
}

// untilDeath waits for the moment of a death: in every other round while the successor
// starts, else a moment after it is attached.
func (b *bench) untilDeath(r *Round, next *instance) error {
	if r.Round%2 == 0 {
		if err := b.attached(next); err != nil {
			return err
		}
	}
	return b.wait(b.moment())
}

// warmLine is what an instance says of its start.
var warmLine = regexp.MustCompile(`(warm|cold) start: .*|.*hands nothing over.*`)

// moment is a moment of a start: it takes some hundred milliseconds.
func (b *bench) moment() time.Duration { return time.Duration(b.random.IntN(400)) * time.Millisecond }

func (b *bench) wait(d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-b.ctx.Done():
		return context.Cause(b.ctx)
	}
}

// upstream returns how many queries kube-dns has answered.
func (b *bench) upstream() (float64, error) {
	page, err := b.node.KubeDNS.Metrics(b.ctx, lab.KubeDNSMetrics)
	if err != nil {
		return 0, err
	}
	n := 0.0
	for _, m := range page["coredns_dns_request_duration_seconds"].GetMetric() {
		n += float64(m.GetHistogram().GetSampleCount())
	}
	return n, nil
}

// upstreamSince returns the queries a second.
func (b *bench) upstreamSince(before float64, d time.Duration) (float64, error) {
	now, err := b.upstream()
	return (now - before) / d.Seconds(), err
}

// value reads a metric of the current instance.
func (b *bench) value(metric string) (float64, error) {
	page, err := b.current.Metrics(b.ctx, b.current.metrics)
	if err != nil {
		return 0, err
	}
	n, _ := page.Sum(metric)
	return n, nil
}

// kernelHits returns how many queries the kernel has answered for the current instance.
func (b *bench) kernelHits() (n float64, err error) {
	page, err := b.current.Metrics(b.ctx, b.current.metrics)
	if err != nil {
		return 0, err
	}
	for _, m := range page["coredns_fastpath_requests_total"].GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == "result" && l.GetValue() == "hit" {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n, nil
}
