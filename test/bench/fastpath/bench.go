package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/test/bench/fastpath/generator"
	benched "github.com/trackless-dns/trackless/test/bench/server"
)

// bench are all servers, which run at once and are measured in turn.
type bench struct {
	options
	running  map[string]*running
	softirqs []int
	samples  int // so many were taken
}

// running is a server with its names cached.
type running struct {
	entry
	*benched.Server
	other *lab.Child // an echo for packets that are no DNS

	// wanted is how many queries the fast path must have answered when a load of cached
	// names is over.
	wanted float64
}

// open starts the servers that the loads need.
func (b *bench) open(ctx context.Context) (err error) {
	if b.softirqs, err = softirqThreads(); err != nil {
		return err
	}
	for _, e := range servers {
		if !b.needs(e.name) || e.name == coredns && b.coredns == "" {
			continue
		}
		fmt.Fprintf(os.Stderr, "fastpath: starting %s\n", e.name)
		s, err := benched.Open(ctx, e.spec(b.programs))
		if err != nil {
			return err
		}
		r := &running{entry: e, Server: s}
		b.running[e.name] = r
		if e.fast {
			echo := exec.Command(b.self, verbEcho, other.String())
			if r.other, err = s.Node.Namespace.Start("udp echo", echo); err != nil {
				return err
			}
		}
		if err := b.warm(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return nil
}

// needs reports whether a load of those that are asked for has the server.
func (o options) needs(server string) bool {
	return chosen(o.servers, server) && slices.ContainsFunc(loads, func(l load) bool {
		return chosen(o.loads, l.name) && slices.Contains(l.servers, server)
	})
}

func (b *bench) close() error {
	var errs []error
	for _, r := range b.running {
		if r.other != nil {
			errs = append(errs, r.other.Kill())
		}
		errs = append(errs, r.Close())
	}
	return errors.Join(errs...)
}

// warming asks for each name once, as slowly as every server can.
var warming = generator.Options{Server: dns, Names: names, Last: names * time.Second / warmRate, Rate: warmRate}

const warmRate = 4000

// warm asks until two passes lost next to nothing and, where a fast path answers hits,
// were answered by it. A busy machine loses some in each pass, but seldom the
// same ones.
func (b *bench) warm(ctx context.Context, r *running) error {
	const (
		passes = 8
		most   = 0.98
	)
	warm := 0
	o := warming
	o.Any = r.by == lab.Nobody
	var last error
	for range passes {
		before, err := r.fastHits(ctx)
		if err != nil {
			return err
		}
		asking, err := startAsking(b.self, r.Node.Pods[0], clientCPU, o)
		if err != nil {
			return err
		}
		result, err := asking.wait(ctx)
		if err != nil {
			return err
		}
		enough := most * float64(result.Sent)
		if float64(result.Answered) < enough {
			last = fmt.Errorf("it answered %d of %d queries", result.Answered, result.Sent)
			continue
		}
		if last = r.awaitFastHits(ctx, before+enough); last != nil {
			continue
		}
		if warm++; warm == 2 {
			return nil
		}
	}
	return fmt.Errorf("its cache was not warm after %d passes: %w", passes, cmp.Or(last, errors.New("too many of them lost queries")))
}

// fastHits is how many queries a fast path has answered so far.
func (r *running) fastHits(ctx context.Context) (float64, error) {
	if !r.fast {
		return 0, nil
	}
	m, err := r.Running.Metrics(ctx, benched.Metrics)
	if err != nil {
		return 0, err
	}
	n, _ := m.Sum("coredns_fastpath_requests_total")
	return n, nil
}

// awaitFastHits waits until the fast path has answered so many queries, which the metrics
// say within a second or two.
func (r *running) awaitFastHits(ctx context.Context, want float64) error {
	if !r.fast {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		n, err := r.fastHits(ctx)
		if err == nil && n >= want {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s: the fast path did not answer: %.0f answers of it are missing", r.name, want-n), err)
		case <-tick.C:
		}
	}
}

// rounds measures a load.
func (b *bench) rounds(ctx context.Context, l load) (m measured, err error) {
	m.Load = l.name
	var there []*running
	for _, name := range l.servers {
		r := b.running[name]
		if r == nil {
			continue
		}
		if r.wanted, err = r.fastHits(ctx); err != nil {
			return m, err
		}
		there = append(there, r)
	}
	if len(there) == 0 {
		return m, nil
	}
	if l.program {
		stop, err := countRuns()
		if err != nil {
			return m, err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	fmt.Fprintf(os.Stderr, "fastpath: %s: %d rounds of %d servers\n", l.name, b.options.rounds, len(there))
	m.Rounds, m.Discarded, err = keep(b.options.rounds, b.disturbed, func(n int) (round, error) {
		r, repeated, err := b.round(ctx, l, there, n)
		m.Repeated += repeated
		return r, err
	})
	for _, r := range there {
		if err == nil && l.hits {
			err = r.awaitFastHits(ctx, r.wanted)
		}
	}
	return m, err
}

// round measures the servers in turn, in every other round in the reverse order. It
// returns how many disturbed samples it took again.
func (b *bench) round(ctx context.Context, l load, there []*running, n int) (taken round, repeated int, err error) {
	order := slices.Clone(there)
	if n%2 == 1 {
		slices.Reverse(order)
	}
	for _, r := range order {
		s, discarded, err := again(b.disturbed, func() (sample, error) {
			s, err := b.sample(ctx, l, r)
			if b.verbose {
				fmt.Fprintf(os.Stderr, "fastpath: %s, round %d: %+v\n", l.name, n, s)
			}
			return s, err
		})
		if err != nil {
			return nil, repeated, fmt.Errorf("%s: %w", r.name, err)
		}
		repeated += discarded
		taken = append(taken, s)
	}
	return taken, repeated, nil
}

// sample measures one server.
func (b *bench) sample(ctx context.Context, l load, r *running) (s sample, err error) {
	b.samples++
	var ran runs
	if l.program {
		if ran, err = programRuns(r.Node.Namespace, r.Node.Pods[0].HostLink); err != nil {
			return s, err
		}
	}
	server := r.Running.PID()
	if l.name == programOthers {
		server = r.other.PID() // it answers them
	}
	before, err := readClock(server, b.softirqs)
	if err != nil {
		return s, err
	}
	results, err := b.ask(ctx, l, r)
	if err != nil {
		return s, err
	}
	after, err := readClock(server, b.softirqs)
	if err != nil {
		return s, err
	}
	s, err = summarise(before, after, results)
	s.Server = r.name
	const most = 0.99 // the cache may refresh some
	r.wanted += most * float64(s.Sent-s.Lost)
	if err == nil && l.program {
		var now runs
		now, err = programRuns(r.Node.Namespace, r.Node.Pods[0].HostLink)
		s.Program = now.since(ran)
		if n := int(now.count - ran.count); err == nil && float64(n) > 1.02*float64(s.Sent) {
			err = fmt.Errorf("the program ran %d times for %d packets: others passed it, too", n, s.Sent)
		}
	}
	return s, err
}

// ask plays the load and waits until it is over.
func (b *bench) ask(ctx context.Context, l load, r *running) ([]generator.Result, error) {
	var all []*asking
	var errs []error
	for _, c := range l.clients {
		o := l.inSample(c, b.samples)
		o.Any = o.Any || r.by == lab.Nobody
		verb, options := verbAsk, any(o)
		if c.dnsperf {
			verb, options = verbDNSPerf, dnsperf{o, b.dnsperf}
		}
		a, err := start(b.self, verb, r.Node.Pods[c.pod], c.cpu, options, o.Last)
		if err != nil {
			errs = append(errs, err)
			break
		}
		all = append(all, a)
	}
	var results []generator.Result
	for _, a := range all {
		result, err := a.wait(ctx)
		results, errs = append(results, result), append(errs, err)
	}
	return results, errors.Join(errs...)
}

// summarise makes a sample of two readings and of the load between them.
func summarise(before, after clock, results []generator.Result) (s sample, err error) {
	server := after.server - before.server + after.softirq - before.softirq
	total, ours, answered := server, server, 0
	for _, r := range results {
		if r.Wrong > 0 {
			return s, fmt.Errorf("%d of %d answers were wrong", r.Wrong, r.Sent)
		}
		total, ours = total+r.CPU, ours+r.Process
		answered += r.Answered
		s.Sent += r.Sent
		s.QPS += float64(r.Answered) / r.Took.Seconds()
		s.P50, s.P99 = max(s.P50, microseconds(r.P50)), max(s.P99, microseconds(r.P99))
	}
	if answered == 0 {
		return s, fmt.Errorf("none of %d queries was answered", s.Sent)
	}
	s.Lost = s.Sent - answered
	s.ServerCPU = microseconds(server) / float64(answered)
	s.CPU = microseconds(total) / float64(answered)
	s.Process = 100 * float64(after.server-before.server) / float64(after.at.Sub(before.at))
	time := float64(after.at.Sub(before.at)) * float64(len(measuredCPUs))
	s.Others = math.Max(0, float64(after.busy-before.busy-ours)/time)
	s.Steal = float64(after.stolen-before.stolen) / time
	return s, nil
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
