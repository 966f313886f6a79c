// Package experiment measures the same load with and without Trackless, each time
// on a fresh node, and says whether what was promised held: what `trackless lab`
// shows.
package experiment

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/load"
)

// A Scenario is a kind of experiment.
type Scenario string

// The scenarios.
const (
	// Steady sends the load on a node with an empty table.
	Steady Scenario = "steady"

	// Exhaustion fills the node's table to its limit first.
	Exhaustion Scenario = "exhaustion"

	// SearchPath looks external names up along the search path of a pod: that is a Search.
	SearchPath Scenario = "search"
)

// Scenarios lists them all, the default one first.
func Scenarios() []Scenario { return append(loads(), SearchPath) }

// loads are the scenarios of an Experiment.
func loads() []Scenario { return []Scenario{Steady, Exhaustion} }

// An Experiment measures the same load twice, each time on a fresh node: as it
// goes through kube-proxy to kube-dns, and with `trackless serve` on the node.
// The zero Experiment is the steady scenario with 20,000 queries.
type Experiment struct {
	Scenario Scenario
	Node     lab.Options
	Load     load.Load

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

// Run makes the experiment. An error means that it could not be made; whether
// the promises held is in the report.
func (e Experiment) Run(ctx context.Context) (*Report, error) {
	if e.Scenario == "" {
		e.Scenario = Steady
	}
	if !slices.Contains(loads(), e.Scenario) {
		return nil, fmt.Errorf("no experiment has the scenario %q; there are %v", e.Scenario, loads())
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
	node, err := lab.NewNode(ctx, e.Node)
	if err != nil {
		return phase, err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	planned, err := e.Load.WithDefaults(node)
	if err != nil {
		return phase, err
	}
	if e.Scenario == Exhaustion && name == "before" {
		// Hardly anything arrives, so there is nothing to overrun.
		planned.Outstanding = load.MaxOutstanding
	}
	planned.Progress = func(done int) { step("sending queries", done, planned.Queries) }
	report.Pods, report.RatePerSecond = len(node.Pods), planned.Rate
	if report.TableLimit, err = node.TableLimit(); err != nil {
		return phase, err
	}

	var cache *lab.Server
	if name == "after" {
		step("starting trackless", 0, 0)
		if cache, err = node.ServeAttached(ctx, e.corefile(node), serveMetrics); err != nil {
			return phase, err
		}
	}
	if e.Scenario == Exhaustion {
		if cache != nil {
			step("warming the cache", 0, 0)
			if err := load.Warm(ctx, node, planned); err != nil {
				return phase, err
			}
		}
		filled, err := node.Fill(ctx, func(created, limit int) { step("filling the table", created, limit) })
		if err != nil {
			return phase, err
		}
		report.FillerEntries = filled
	}
	if err := e.measure(ctx, node, cache, planned, &phase); err != nil {
		return phase, err
	}
	if cache != nil {
		step("stopping trackless", 0, 0)
		err = cache.Close()
	}
	return phase, err
}

// measure runs the load and notes what the table and the servers say about it.
func (e Experiment) measure(ctx context.Context, node *lab.Node, cache *lab.Server, planned load.Load, phase *Phase) error {
	kubeDNSBefore, err := queriesServed(ctx, node.KubeDNS, lab.KubeDNSMetrics)
	if err != nil {
		return err
	}
	var cacheBefore int
	avoided := avoidedPeak{cache: cache}
	if cache != nil {
		if cacheBefore, err = queriesServed(ctx, cache, serveMetrics); err != nil {
			return err
		}
	}
	watch, err := node.Watch(lab.WatchOptions{OnSample: avoided.sample})
	if err != nil {
		return err
	}
	result, loadErr := load.Run(ctx, node, planned)
	figures, watchErr := watch.Stop()
	if err := errors.Join(loadErr, watchErr, avoided.err); err != nil {
		return err
	}
	phase.fillLoad(result)
	phase.fillTable(figures)
	phase.EntriesAvoidedPeak = avoided.peak

	if cache != nil {
		phase.CacheQueries, err = queriesSince(ctx, cache, serveMetrics, cacheBefore, phase.AnsweredBy[lab.Trackless])
		if err != nil {
			return err
		}
	}
	// What the cache asked for can only be told from below: the names that it
	// had never seen.
	upstream := max(phase.AnsweredBy[lab.KubeDNS], phase.Misses-phase.MissesLost)
	phase.UpstreamQueries, err = queriesSince(ctx, node.KubeDNS, lab.KubeDNSMetrics, kubeDNSBefore, upstream)
	return err
}

// corefile is that of the node's cache. In the exhaustion scenario TTLs last
// until the end, so that what was cached before the table was full still is. The
// lease is long: what is measured is DNS through Trackless, and a machine that
// stalls for a second would send some of it to the cluster.
func (e Experiment) corefile(node *lab.Node) string {
	ttl := 30
	if e.Scenario == Exhaustion {
		ttl = 300
	}
	listen := append([]netip.Addr{lab.LinkLocalDNS4}, node.ClusterDNS()...)
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
`, figure.Joined(listen), ttl, lab.UpstreamDNS4, serveMetrics)
}

// queriesServed is how many DNS queries the server has counted.
func queriesServed(ctx context.Context, s *lab.Server, metrics string) (int, error) {
	now, err := scrape(ctx, s, metrics)
	if err != nil {
		return 0, err
	}
	served, _ := now.Sum("coredns_dns_requests_total") // absent before the first query
	return int(served), nil
}

// queriesSince is by how much the server's count of DNS queries has risen. A
// query is counted when its answer has left, so a count that lacks some of those
// which the server has answered is waited for.
func queriesSince(ctx context.Context, s *lab.Server, metrics string, before, answered int) (int, error) {
	deadline := time.Now().Add(scrapeTimeout)
	for {
		now, err := queriesServed(ctx, s, metrics)
		// If some stay away the report says so.
		if err != nil || now-before >= answered || time.Now().After(deadline) {
			return now - before, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// avoidedPeak follows the server's gauge of avoided entries.
type avoidedPeak struct {
	cache *lab.Server
	peak  int
	err   error
}

func (a *avoidedPeak) sample(ctx context.Context, s *lab.TableSample) {
	if a.cache == nil || a.err != nil {
		return
	}
	now, err := scrape(ctx, a.cache, serveMetrics)
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
func scrape(ctx context.Context, s *lab.Server, address string) (lab.Metrics, error) {
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
