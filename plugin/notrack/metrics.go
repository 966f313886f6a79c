package notrack

import (
	"errors"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/trackless-dns/trackless/agent"
	"github.com/trackless-dns/trackless/agent/tablewalk"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile"
)

const conntrackSubsystem = "conntrack"

func desc(subsystem, name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(plugin.Namespace, subsystem, name), help, labels, nil)
}

var (
	attachedDesc = desc(directive, "attached", "Whether DNS to the listen address is untracked (1) or goes where it would go without us (0).", "address")
	dryRunDesc   = desc(directive, "dry_run", "Whether the Corefile asks to count what would be untracked, and to untrack nothing.")
	packetsDesc  = desc(directive, "packets_total", "Packets untracked by the rules; what this node sends to itself passes two hooks and counts once.", "direction", "family", "proto")
	backendDesc  = desc(directive, "backend_info", "The backend in force, its table, whether the kernel removes the rules when the process dies, and why this backend was chosen.", "backend", "table", "owned", "reason")
	lapsesDesc   = desc(directive, "lease_lapses_total", "Leases that ran out although this process meant to hold them.")
	overloadDesc = desc(directive, "overloads_total", "Times that queries were given to the cluster's DNS, before a lease ran out, since too many were lost to the CPU limit of this process.")
	waitDesc     = desc(directive, "wait_seconds", "Time for which queries are still left to the cluster's DNS after lapses, by the cause of the last lapse; 0 where there is no wait.", "cause")
	repairsDesc  = desc(directive, "repairs_total", "Rules, addresses and links that others took away or set down, and that were put back.", "reason")
	syncDesc     = desc(directive, "sync_duration_seconds", "Time to hold rules, addresses, uplinks and timeouts against what they should be, and to put right what is not, at each `sync` and each change that is announced.")
	avoidedDesc  = desc(directive, "entries_avoided", "Conntrack entries that `conntrack -L` would show now had DNS to the listen addresses been tracked.", "proto", "family")
	errorDesc    = desc(directive, "entries_avoided_error", "Distance in entries within which the true sum of entries_avoided lies with a probability of 99.7 %; 0 where it is exact.")
	flowsDesc    = desc(directive, "flows_avoided_total", "Conntrack entries that DNS to the listen addresses would have made.", "proto", "family")
	shedDesc     = desc(directive, "shed_total", "Queries for which there was no room: dropped unanswered since their client had too many under way, or answered REFUSED since too many wait for an upstream.", "how")
	entriesDesc  = desc(conntrackSubsystem, "entries", "Entries in the connection tracking table of this network namespace (nf_conntrack_count).")
	limitDesc    = desc(conntrackSubsystem, "entries_limit", "Entries at which the kernel drops new flows (nf_conntrack_max), 0 where there is no limit.")
	bucketsDesc  = desc(conntrackSubsystem, "buckets", "Buckets of the hash that all network namespaces share (nf_conntrack_buckets).")
	trackingDesc = desc(conntrackSubsystem, "tracking_info", "Whether packets of this network namespace are tracked at all; where they are not, reason says why, and no entries are avoided.", "active", "reason")
	dnsDesc      = desc(conntrackSubsystem, "dns_entries", "Entries of DNS at the last walk of the table: client to a listen address, upstream from us to a forward target, bypass from this node or its pods to another server.", "role", "proto", "family")
	walkedDesc   = desc(conntrackSubsystem, "walk_timestamp_seconds", "When the table was last walked.")
	intervalDesc = desc(conntrackSubsystem, "walk_interval_seconds", "Time between two walks of the table, so long that they take at most 1 % of a CPU.")
	walkCPUDesc  = desc(conntrackSubsystem, "walk_cpu_seconds_total", "Processor time that walks of the table have taken.")
)

// kernelDescs are those of the kernel's own counters, by the kernel's name.
var kernelDescs = func() map[string]*prometheus.Desc {
	descs := map[string]*prometheus.Desc{}
	for _, c := range new(conntrack.CPUStats).Counters() {
		help := strings.ToUpper(c.Meaning[:1]) + c.Meaning[1:] + "."
		descs[c.Name] = desc(conntrackSubsystem, c.Name+"_total", help)
	}
	return descs
}()

// collector reads everything at the scrape, from counters that are there
// anyway: none of it walks the kernel's table.
type collector struct {
	process  *agent.Agent
	rules    func() (*reconcile.Reconciler, iptables.Backend, string)
	procRoot string
	stats    func() ([]conntrack.CPUStats, error)
	kernel   kernelCounters
}

func init() {
	prometheus.MustRegister(&collector{process: process, rules: process.Rules, procRoot: "/proc", stats: kernelStats})
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		attachedDesc, dryRunDesc, packetsDesc, backendDesc, lapsesDesc, overloadDesc, waitDesc, repairsDesc, syncDesc,
		avoidedDesc, errorDesc, flowsDesc, shedDesc, entriesDesc, limitDesc, bucketsDesc,
		trackingDesc, dnsDesc, walkedDesc, intervalDesc, walkCPUDesc,
	} {
		ch <- d
	}
	for _, d := range kernelDescs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	if limits, err := sysctl.ReadLimits(c.procRoot); err == nil {
		gauge(ch, entriesDesc, float64(limits.Count))
		gauge(ch, limitDesc, float64(limits.Max))
		gauge(ch, bucketsDesc, float64(limits.Buckets))
	}
	keeper, backend, reason := c.rules()
	if keeper == nil || backend == nil {
		return
	}
	for addr, attached := range keeper.Status() {
		value := 0.0
		if attached {
			value = 1
		}
		gauge(ch, attachedDesc, value, addr.String())
	}
	dryRun, standing := 0.0, keeper.Standing()
	if standing.DryRun {
		dryRun = 1
	}
	gauge(ch, dryRunDesc, dryRun)
	gauge(ch, backendDesc, 1, backend.Name(), backend.Table(), strconv.FormatBool(backend.Owned()), reason)
	if counters, err := keeper.Counters(); err == nil {
		for _, k := range iptables.CounterKeys() {
			counter(ch, packetsDesc, float64(counters[k]), k.Direction.String(), k.Family.String(), k.Proto.String())
		}
	} else {
		limited.Warningf("scrape-packets", "packet counters are missing from this scrape: %v", err)
	}
	stats := keeper.Stats()
	counter(ch, lapsesDesc, float64(stats.Lapses))
	counter(ch, overloadDesc, float64(stats.Overloads))
	for _, cause := range reconcile.Causes() {
		wait := 0.0
		if cause == standing.Wait.Cause && !standing.Wait.Until.IsZero() {
			wait = max(0, time.Until(standing.Wait.Until).Seconds())
		}
		gauge(ch, waitDesc, wait, cause.String())
	}
	for _, reason := range []string{reconcile.RepairAddress, reconcile.RepairLink, reconcile.RepairRules} {
		counter(ch, repairsDesc, float64(stats.Repairs[reason]), reason)
	}
	ch <- prometheus.MustNewConstSummary(syncDesc, stats.Syncs, stats.SyncTime.Seconds(), nil)
	u := &c.process.Queries
	counter(ch, shedDesc, float64(u.Dropped()), "dropped")
	counter(ch, shedDesc, float64(u.Refused()), "refused")
	c.collectLedger(ch)
	c.collectTable(ch)
	c.collectKernel(ch)
}

func (c *collector) collectLedger(ch chan<- prometheus.Metric) {
	var entries ledger.Estimate // none where nothing would be tracked
	if !c.process.Table.Idle() {
		entries = c.process.Ledger.Entries()
	}
	byClass(ch, avoidedDesc, prometheus.GaugeValue, entries.Counts)
	gauge(ch, errorDesc, entries.Error)
	byClass(ch, flowsDesc, prometheus.CounterValue, c.process.Ledger.Flows())
}

// collectTable exports what the last walk found.
func (c *collector) collectTable(ch chan<- prometheus.Metric) {
	counter(ch, walkCPUDesc, c.process.Table.CPUTime().Seconds())
	w := c.process.Table.Latest()
	if w == nil {
		return
	}
	gauge(ch, trackingDesc, 1, strconv.FormatBool(w.Idle == ""), w.Idle)
	for _, class := range tablewalk.Classes() {
		gauge(ch, dnsDesc, float64(w.Entries[class]), class.Role.String(), class.Proto.String(), class.Family.String())
	}
	gauge(ch, walkedDesc, float64(w.At.UnixMilli())/1000)
	gauge(ch, intervalDesc, w.Interval.Seconds())
}

// collectKernel exports the kernel's counters, where it has them.
func (c *collector) collectKernel(ch chan<- prometheus.Metric) {
	stats, err := c.stats()
	if errors.Is(err, conntrack.ErrUnavailable) {
		return
	}
	if err != nil {
		limited.Warningf("scrape-kernel", "the kernel's conntrack counters are missing from this scrape: %v", err)
		return
	}
	for name, value := range c.kernel.update(stats) {
		counter(ch, kernelDescs[name], float64(value))
	}
}

// kernelStats reads the counters of each CPU.
func kernelStats() (stats []conntrack.CPUStats, err error) {
	conn, err := conntrack.Dial(nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.Stats()
}

// kernelCounters adds up the kernel's counters. Each CPU's has 32 bits and goes
// back to 0; the sums never do.
type kernelCounters struct {
	mu   sync.Mutex
	last map[int][]conntrack.Counter // by CPU
	sum  map[string]uint64
}

// update takes the present counters of each CPU and returns the sums over all.
func (k *kernelCounters) update(stats []conntrack.CPUStats) map[string]uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last == nil {
		k.last, k.sum = map[int][]conntrack.Counter{}, map[string]uint64{}
	}
	for i := range stats {
		now, last := stats[i].Counters(), k.last[stats[i].CPU]
		for j, c := range now {
			was := uint64(0)
			if last != nil {
				was = last[j].Value
			}
			k.sum[c.Name] += uint64(uint32(c.Value - was))
		}
		k.last[stats[i].CPU] = now
	}
	return maps.Clone(k.sum)
}

func gauge(ch chan<- prometheus.Metric, d *prometheus.Desc, value float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

func counter(ch chan<- prometheus.Metric, d *prometheus.Desc, value float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, value, labels...)
}

// byClass exports a number for each protocol and family.
func byClass(ch chan<- prometheus.Metric, d *prometheus.Desc, t prometheus.ValueType, n ledger.Counts) {
	for _, c := range agent.ClassesOf(n) {
		ch <- prometheus.MustNewConstMetric(d, t, float64(c.N), c.Proto.String(), c.Family.String())
	}
}
