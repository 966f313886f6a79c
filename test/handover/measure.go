package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
)

// bench is a node with instances that replace each other.
type bench struct {
	settings
	ctx     context.Context
	node    *lab.Node
	current *lab.Server
	number  int // of the current instance
	started int // instances
	conn    *conntrack.Conn
	random  *rand.Rand
}

// way is how an instance is replaced.
type way string

const (
	replaced        way = "replaced"           // the successor attaches, and the predecessor is stopped
	predecessorDies way = "predecessor killed" // while the successor starts
	successorDies   way = "successor killed"   // while it starts
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
	node, err := lab.NewNode(ctx, lab.Options{Program: s.program})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	b := &bench{settings: s, ctx: ctx, node: node, random: rand.New(rand.NewPCG(1, 2))}
	if b.conn, err = conntrack.Dial(&conntrack.Config{NetNS: node.Namespace.FD()}); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.conn.Close()) }()
	if b.current, err = b.start(""); err != nil {
		return nil, err
	}
	b.number = b.started
	if err := b.attached(b.current, b.number); err != nil {
		return nil, err
	}
	began := time.Now()
	load := clients.StartStreams(streams(node, s.rate, s.names), 2*time.Second)
	probes := b.startProbes()
	r = &Result{Rate: s.rate, Names: s.names}
	r.Rounds, err = b.rounds(began)
	failed := probes.stop()
	sent, stopErr := load.Stop()
	if err := errors.Join(err, stopErr); err != nil {
		return nil, err
	}
	r.assign(sent, began, s.rate)
	r.assignProbes(failed)
	return r, b.current.Close()
}

func (b *bench) rounds(began time.Time) (all []*Round, err error) {
	if err := b.wait(time.Until(began.Add(b.warmUp))); err != nil {
		return nil, err
	}
	for n := 1; n <= b.settings.rounds+1; n++ {
		r := &Round{Round: n, Way: wayOf(n, b.settings.rounds)}
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
		fmt.Fprintf(os.Stderr, "%d/%d %s: %s\n", n, b.settings.rounds+1, r.Way, r.Start)
	}
	return all, nil
}

// round makes one replacement.
func (b *bench) round(r *Round) error {
	before, err := b.upstream()
	if err != nil {
		return err
	}
	if err := b.wait(b.hold); err != nil {
		return err
	}
	if r.UpstreamBefore, err = b.upstreamSince(before, b.hold); err != nil {
		return err
	}
	if r.AvoidedBefore, err = b.value("coredns_notrack_entries_avoided"); err != nil {
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
	if err := b.wait(b.hold); err != nil {
		return err
	}
	if r.UpstreamAfter, err = b.upstreamSince(before, b.hold); err != nil {
		return err
	}
	r.end = time.Now()
	if r.Lapses, err = b.value("coredns_notrack_lease_lapses_total"); err != nil {
		return err
	}
	return b.leftOver(r)
}

// replace makes another instance the current one, unless it dies.
func (b *bench) replace(r *Round) error {
	options := ""
	if r.Way == cold {
		options = "warm off"
	}
	next, err := b.start(options)
	if err != nil {
		return err
	}
	number := b.started
	switch r.Way {
	case successorDies:
		if err := b.wait(b.moment()); err != nil {
			return err
		}
		return next.Kill()
	case predecessorDies:
		if err := b.wait(b.moment()); err != nil {
			return err
		}
		if err := b.current.Kill(); err != nil {
			return err
		}
	}
	if err := b.attached(next, number); err != nil {
		return err
	}
	r.Start = warmLine.FindString(next.Output())
	if r.Way != predecessorDies {
		if err := b.current.Close(); err != nil {
			return err
		}
	}
	b.current, b.number = next, number
	return nil
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

// probed is where kubelet would probe: all instances have the same addresses.
const probed = "127.0.0.1"

// start starts an instance beside the others, with a metrics page of its own.
func (b *bench) start(options string) (*lab.Server, error) {
	var listen []string
	for _, a := range b.node.ClusterDNS() {
		listen = append(listen, a.String())
	}
	b.started++
	return b.node.Serve(fmt.Sprintf(`.:53 {
    errors
    bind %s
    notrack {
        lease 2s
        %s
    }
    cache {
        success 131072 3000
    }
    forward . %s
    prometheus %s
    health %s:8080
    ready %s:8181
}
`, strings.Join(listen, " "), options, lab.UpstreamDNS4, metricsOf(b.started), probed, probed))
}

func metricsOf(number int) string { return fmt.Sprintf("127.0.0.1:%d", 9300+number) }

func (b *bench) attached(server *lab.Server, number int) error {
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	return server.AwaitAttached(ctx, metricsOf(number))
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
	page, err := b.current.Metrics(b.ctx, metricsOf(b.number))
	if err != nil {
		return 0, err
	}
	n, _ := page.Sum(metric)
	return n, nil
}

// leftOver finds what a replacement has left on the node.
func (b *bench) leftOver(r *Round) error {
	listen := map[netip.Addr]bool{}
	for _, a := range b.node.ClusterDNS() {
		listen[a] = true
	}
	err := b.conn.Dump(conntrack.Filter{}, func(e *conntrack.Entry) error {
		if o := e.Original; listen[o.Src] && o.SrcPort == lab.DNSPort && o.DstPort != lab.DNSPort {
			r.Reversed++
		}
		return nil
	})
	if err != nil {
		return err
	}
	return b.node.Namespace.Do(func() error {
		tables, err := exec.Command("nft", "list", "tables").Output()
		if err != nil {
			return err
		}
		sockets, err := os.ReadFile("/proc/thread-self/net/unix")
		r.Tables = len(instanceTable.FindAll(tables, -1))
		r.Sockets = strings.Count(string(sockets), "@trackless/handover/")
		return err
	})
}

var instanceTable = regexp.MustCompile(`(?m)^table inet trackless-[0-9a-f]{8}$`)
