package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
)

// A Scenario is a kind of experiment.
type Scenario string

// The scenarios.
const (
	// Steady sends the load on a node with an empty table.
	Steady Scenario = "steady"

	// Exhaustion fills the node's table to its limit first.
	Exhaustion Scenario = "exhaustion"
)

// Scenarios lists them all, the default one first.
func Scenarios() []Scenario { return []Scenario{Steady, Exhaustion} }

// An Experiment measures the same load twice, each time on a fresh node: as it
// goes through kube-proxy to kube-dns, and with `trackless serve` on the node.
// The zero Experiment is the steady scenario with 20,000 queries.
type Experiment struct {
	Scenario Scenario
	Node     Options
	Load     Load

	// Progress, if not nil, is called several times a second.
	Progress func(Progress)
}

// Progress is how far an experiment has come.
type Progress struct {
	Phase string // "before" or "after"
	Step  string // what is being done
	Done  int    // of Of, in the step's own units; both 0 where there are none
	Of    int
}

// exhaustionQueries is the default of the exhaustion scenario, where most
// queries of the first phase wait for five seconds in vain.
const exhaustionQueries = 5_000

// serveMetrics is where the node's cache serves its metrics, inside the node.
// It is at a listen address, so that notrack can untrack it too: a full table
// would refuse the scrapes otherwise.
const serveMetrics = "169.254.20.10:9253"

// Missing builds a small node and gives it up again, and returns an error that
// says what this machine lacks for that, if anything.
func Missing(options Options) error {
	options.Pods, options.WithoutKubeDNS, options.WithoutKubeProxy = 1, true, false
	node, err := NewNode(context.Background(), options)
	if err != nil {
		return err
	}
	watch, err := node.Watch(WatchOptions{})
	if err == nil {
		_, err = watch.Stop()
	}
	return errors.Join(err, node.Close())
}

// Run makes the experiment. An error means that it could not be made; whether
// the promises held is in the report.
func (e Experiment) Run(ctx context.Context) (*Report, error) {
	if e.Scenario == "" {
		e.Scenario = Steady
	}
	if !slices.Contains(Scenarios(), e.Scenario) {
		return nil, fmt.Errorf("no scenario is called %q; there are %v", e.Scenario, Scenarios())
	}
	if e.Scenario == Exhaustion && e.Load.Queries == 0 {
		e.Load.Queries = exhaustionQueries
	}
	report := &Report{Scenario: e.Scenario, Seed: e.Load.Seed}
	var err error
	if report.Before, err = e.phase(ctx, "before", report); err != nil {
		return nil, fmt.Errorf("first phase, through kube-proxy: %w", err)
	}
	if report.After, err = e.phase(ctx, "after", report); err != nil {
		return nil, fmt.Errorf("second phase, through trackless: %w", err)
	}
	report.judge()
	return report, nil
}

// phase runs the load once, on a node of its own.
func (e Experiment) phase(ctx context.Context, name string, report *Report) (phase Phase, err error) {
	step := func(text string, done, of int) {
		if e.Progress != nil {
			e.Progress(Progress{Phase: name, Step: text, Done: done, Of: of})
		}
	}
	step("building a node", 0, 0)
	node, err := NewNode(ctx, e.Node)
	if err != nil {
		return phase, err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	load, err := e.Load.withDefaults(node)
	if err != nil {
		return phase, err
	}
	if e.Scenario == Exhaustion && name == "before" {
		// Hardly anything arrives, so there is nothing to overrun.
		load.Outstanding = maxOutstanding
	}
	load.Progress = func(done int) { step("sending queries", done, load.Queries) }
	report.Pods, report.RatePerSecond = len(node.Pods), load.Rate
	if report.TableLimit, err = node.TableLimit(); err != nil {
		return phase, err
	}

	var cache *Server
	if name == "after" {
		step("starting trackless", 0, 0)
		if cache, err = node.serveAttached(ctx, e.corefile(node)); err != nil {
			return phase, err
		}
	}
	if e.Scenario == Exhaustion {
		if cache != nil {
			step("warming the cache", 0, 0)
			if err := node.Warm(ctx, load); err != nil {
				return phase, err
			}
		}
		filled, err := node.Fill(ctx, func(created, limit int) { step("filling the table", created, limit) })
		if err != nil {
			return phase, err
		}
		report.FillerEntries = filled
	}
	if err := e.measure(ctx, node, cache, load, &phase); err != nil {
		return phase, err
	}
	if cache != nil {
		step("stopping trackless", 0, 0)
		err = cache.Close()
	}
	return phase, err
}

// measure runs the load and notes what the table and the servers say about it.
func (e Experiment) measure(ctx context.Context, node *Node, cache *Server, load Load, phase *Phase) error {
	kubeDNSBefore, err := node.KubeDNS.queriesServed(ctx, kubeDNSMetrics)
	if err != nil {
		return err
	}
	var cacheBefore int
	avoided := avoidedPeak{cache: cache}
	if cache != nil {
		if cacheBefore, err = cache.queriesServed(ctx, serveMetrics); err != nil {
			return err
		}
	}
	watch, err := node.Watch(WatchOptions{OnSample: avoided.sample})
	if err != nil {
		return err
	}
	result, loadErr := node.Run(ctx, load)
	figures, watchErr := watch.Stop()
	if err := errors.Join(loadErr, watchErr, avoided.err); err != nil {
		return err
	}
	phase.fillLoad(result)
	phase.fillTable(figures)
	phase.EntriesAvoidedPeak = avoided.peak

	if cache != nil {
		phase.CacheQueries, err = cache.queriesSince(ctx, serveMetrics, cacheBefore, phase.AnsweredBy[Trackless])
		if err != nil {
			return err
		}
	}
	// What the cache asked for can only be told from below: the names that it
	// had never seen.
	upstream := max(phase.AnsweredBy[KubeDNS], phase.Misses-phase.MissesLost)
	phase.UpstreamQueries, err = node.KubeDNS.queriesSince(ctx, kubeDNSMetrics, kubeDNSBefore, upstream)
	return err
}

// corefile is that of the node's cache. In the exhaustion scenario TTLs last
// until the end, so that what was cached before the table was full still is. The
// lease is long: what is measured is DNS through Trackless, and a machine that
// stalls for a second would send some of it to the cluster.
func (e Experiment) corefile(node *Node) string {
	ttl := 30
	if e.Scenario == Exhaustion {
		ttl = 300
	}
	listen := append([]netip.Addr{LinkLocalDNS4}, node.ClusterDNS()...)
	return fmt.Sprintf(`.:53 {
    errors
    bind %[1]s
    notrack {
        untrack %[4]s
        lease 5s
    }
    cache {
        success 9984 %[2]d
        denial 9984 %[2]d
    }
    forward . %[3]s
    prometheus %[4]s
}
`, joinAddrs(listen), ttl, UpstreamDNS4, serveMetrics)
}

// serveAttached starts the node's cache and returns when its rules are in
// force at every listen address, with an empty table: what was recorded until
// then, such as the scrapes that waited for it, is not what is measured.
func (n *Node) serveAttached(ctx context.Context, corefile string) (*Server, error) {
	server, err := n.Serve(corefile)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := server.AwaitAttached(ctx, serveMetrics); err != nil {
		return nil, err
	}
	server.client.CloseIdleConnections()
	return server, n.Flush()
}

// AwaitAttached waits until the server, whose prometheus directive names the
// address, has its NOTRACK rules in force at all its listen addresses.
func (s *Server) AwaitAttached(ctx context.Context, metrics string) error {
	return s.await(ctx, "attached", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
		defer cancel()
		now, err := s.Metrics(ctx, metrics)
		if err != nil {
			return err
		}
		addresses := now["coredns_notrack_attached"].GetMetric()
		if len(addresses) == 0 {
			return errors.New("it shows no metric coredns_notrack_attached")
		}
		for _, address := range addresses {
			if address.GetGauge().GetValue() != 1 {
				return fmt.Errorf("not attached at %s", address.GetLabel())
			}
		}
		return nil
	})
}

// queriesServed is how many DNS queries the server has counted.
func (s *Server) queriesServed(ctx context.Context, metrics string) (int, error) {
	now, err := s.scrape(ctx, metrics)
	if err != nil {
		return 0, err
	}
	served, _ := now.Sum("coredns_dns_requests_total") // absent before the first query
	return int(served), nil
}

// queriesSince is by how much the server's count of DNS queries has risen. A
// query is counted when its answer has left, so a count that lacks some of those
// which the server has answered is waited for.
func (s *Server) queriesSince(ctx context.Context, metrics string, before, answered int) (int, error) {
	deadline := time.Now().Add(scrapeTimeout)
	for {
		now, err := s.queriesServed(ctx, metrics)
		// If some stay away the report says so.
		if err != nil || now-before >= answered || time.Now().After(deadline) {
			return now - before, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// avoidedPeak follows the server's gauge of avoided entries.
type avoidedPeak struct {
	cache *Server
	peak  int
	err   error
}

func (a *avoidedPeak) sample(ctx context.Context, s *TableSample) {
	if a.cache == nil || a.err != nil {
		return
	}
	now, err := a.cache.scrape(ctx, serveMetrics)
	if errors.Is(err, context.Canceled) {
		return // the watch is being stopped and takes one more sample
	}
	if err != nil {
		a.err = err
		return
	}
	if value, ok := now.Sum("coredns_notrack_entries_avoided"); ok {
		a.peak = max(a.peak, int(value))
		s.EntriesAvoided = new(int(value))
	}
}

const (
	// scrapeTimeout bounds the wait for figures, scrapeAttempt one try.
	scrapeTimeout = 30 * time.Second
	scrapeAttempt = 3 * time.Second
)

// scrape is Metrics with several tries: a connection that begins while the
// lease has run out stays tracked, and a full table refuses it for good.
func (s *Server) scrape(ctx context.Context, address string) (Metrics, error) {
	deadline := time.Now().Add(scrapeTimeout)
	for {
		attempt, cancel := context.WithTimeout(ctx, scrapeAttempt)
		now, err := s.Metrics(attempt, address)
		cancel()
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return now, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func joinAddrs(addrs []netip.Addr) string {
	texts := make([]string, len(addrs))
	for i, addr := range addrs {
		texts[i] = addr.String()
	}
	return strings.Join(texts, " ")
}

// HasIPv6 reports whether this machine's kernel has IPv6 at all: not one that
// was booted with ipv6.disable=1.
func HasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6/conf/default/accept_dad")
	return err == nil
}
