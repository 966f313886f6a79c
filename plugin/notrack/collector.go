package notrack

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trackless-dns/trackless/agent"
	"github.com/trackless-dns/trackless/agent/kernelcounters"
	"github.com/trackless-dns/trackless/agent/tablewalk"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile"
	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
)

// collector reads existing counters at each scrape. It does not walk the kernel's table.
type collector struct {
	agent    *agent.Agent
	rules    func() (*reconcile.Reconciler, iptables.Backend, string)
	procRoot string
	stats    func() ([]conntrack.CPUStats, error)
	kernel   kernelcounters.Sums
}

// scrape has the inputs of the metrics. Without a reconciler it has only the limits.
type scrape struct {
	agent  *agent.Agent
	limits sysctl.Limits

	reconciler *reconcile.Reconciler
	backend    iptables.Backend
	reason     string // why the backend was chosen
	standing   lease.Standing
	stats      reconcile.Stats
	avoided    ledger.Estimate // zero where the kernel tracks nothing
	walk       *tablewalk.Walk // the last walk; nil before the first
	kernel     map[string]uint64
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, metrics := range [][]*metric{nodeMetrics, ruleMetrics} {
		for _, m := range metrics {
			ch <- m.desc
		}
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := &scrape{agent: c.agent}
	if limits, err := sysctl.ReadLimits(c.procRoot); err == nil {
		s.limits = limits
		collect(ch, nodeMetrics, s)
	}
	s.reconciler, s.backend, s.reason = c.rules()
	if s.reconciler == nil || s.backend == nil {
		return
	}
	s.standing, s.stats, s.walk = s.reconciler.Standing(), s.reconciler.Stats(), c.agent.Table.Latest()
	s.avoided, s.kernel = avoided(c.agent), c.readKernel()
	collect(ch, ruleMetrics, s)
}

func collect(ch chan<- prometheus.Metric, metrics []*metric, s *scrape) {
	for _, m := range metrics {
		m.read(s, output{ch, m.desc})
	}
}

// avoided estimates the avoided entries.
func avoided(a *agent.Agent) ledger.Estimate {
	if a.Table.Idle() {
		return ledger.Estimate{}
	}
	return a.Ledger.Entries()
}

// readKernel returns the kernel's counters, nil where it has none.
func (c *collector) readKernel() map[string]uint64 {
	stats, err := c.stats()
	if errors.Is(err, conntrack.ErrUnavailable) {
		return nil
	}
	if err != nil {
		limited.Warningf("scrape-kernel", "the kernel's conntrack counters are missing from this scrape: %v", err)
		return nil
	}
	return c.kernel.Update(stats)
}

// output sends the values of one metric.
type output struct {
	ch   chan<- prometheus.Metric
	desc *prometheus.Desc
}

func (o output) gauge(value float64, labels ...string) {
	o.ch <- prometheus.MustNewConstMetric(o.desc, prometheus.GaugeValue, value, labels...)
}

func (o output) counter(value float64, labels ...string) {
	o.ch <- prometheus.MustNewConstMetric(o.desc, prometheus.CounterValue, value, labels...)
}

func (o output) summary(count uint64, sum time.Duration) {
	o.ch <- prometheus.MustNewConstSummary(o.desc, count, sum.Seconds(), nil)
}

// byClass sends a number for each protocol and family.
func (o output) byClass(t prometheus.ValueType, n ledger.Counts) {
	for _, c := range agent.ClassesOf(n) {
		o.ch <- prometheus.MustNewConstMetric(o.desc, t, float64(c.N), c.Proto.String(), c.Family.String())
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
