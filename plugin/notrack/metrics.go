package notrack

import (
	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/iptables"
)

const conntrackSubsystem = "conntrack"

func desc(subsystem, name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(plugin.Namespace, subsystem, name), help, labels, nil)
}

var (
	attachedDesc = desc(directive, "attached", "Whether DNS to the listen address is untracked (1) or goes where it would go without us (0).", "address")
	packetsDesc  = desc(directive, "packets_total", "Packets untracked by the rules; what this node sends to itself passes two hooks and counts once.", "direction", "family", "proto")
	backendDesc  = desc(directive, "backend_info", "The backend in force, its table, and whether the kernel removes the rules when the process dies.", "backend", "table", "owned")
	lapsesDesc   = desc(directive, "lease_lapses_total", "Leases that ran out although this process meant to hold them.")
	repairsDesc  = desc(directive, "repairs_total", "Rules and addresses that others took away and that were put back.", "reason")
	avoidedDesc  = desc(directive, "entries_avoided", "Conntrack entries that `conntrack -L` would show now had DNS to the listen addresses been tracked.", "proto", "family")
	errorDesc    = desc(directive, "entries_avoided_error", "Distance in entries within which the true sum of entries_avoided lies with a probability of 99.7 %; 0 where it is exact.")
	flowsDesc    = desc(directive, "flows_avoided_total", "Conntrack entries that DNS to the listen addresses would have made.", "proto", "family")
	entriesDesc  = desc(conntrackSubsystem, "entries", "Entries in the connection tracking table of this network namespace (nf_conntrack_count).")
	limitDesc    = desc(conntrackSubsystem, "entries_limit", "Entries at which the kernel drops new flows (nf_conntrack_max).")
)

// collector reads everything at the scrape, from counters that are there
// anyway: none of it walks the kernel's table.
type collector struct {
	process  *contract
	procRoot string
}

func init() {
	prometheus.MustRegister(&collector{process: &process, procRoot: "/proc"})
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		attachedDesc, packetsDesc, backendDesc, lapsesDesc, repairsDesc,
		avoidedDesc, errorDesc, flowsDesc, entriesDesc, limitDesc,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	if limits, err := conntrack.ReadLimits(c.procRoot); err == nil {
		ch <- prometheus.MustNewConstMetric(entriesDesc, prometheus.GaugeValue, float64(limits.Count))
		ch <- prometheus.MustNewConstMetric(limitDesc, prometheus.GaugeValue, float64(limits.Max))
	}
	keeper, backend := c.process.keeper.Load(), c.process.backend.Load()
	if keeper == nil || backend == nil {
		return
	}
	for addr, attached := range keeper.Status() {
		value := 0.0
		if attached {
			value = 1
		}
		ch <- prometheus.MustNewConstMetric(attachedDesc, prometheus.GaugeValue, value, addr.String())
	}
	owned := "false"
	if backend.Owned() {
		owned = "true"
	}
	ch <- prometheus.MustNewConstMetric(backendDesc, prometheus.GaugeValue, 1, backend.Name(), backend.Table(), owned)
	if counters, err := backend.Counters(); err == nil {
		for _, k := range iptables.CounterKeys() {
			ch <- prometheus.MustNewConstMetric(packetsDesc, prometheus.CounterValue, float64(counters[k]),
				k.Direction.String(), k.Family.String(), k.Proto.String())
		}
	} else {
		log.Warningf("packet counters are missing from this scrape: %v", err)
	}
	stats := keeper.Stats()
	ch <- prometheus.MustNewConstMetric(lapsesDesc, prometheus.CounterValue, float64(stats.Lapses))
	for _, reason := range []string{iptables.RepairAddress, iptables.RepairRules} {
		ch <- prometheus.MustNewConstMetric(repairsDesc, prometheus.CounterValue, float64(stats.Repairs[reason]), reason)
	}
	entries := c.process.ledger.Entries()
	byClass(ch, avoidedDesc, prometheus.GaugeValue, entries.Counts)
	ch <- prometheus.MustNewConstMetric(errorDesc, prometheus.GaugeValue, entries.Error)
	byClass(ch, flowsDesc, prometheus.CounterValue, c.process.ledger.Flows())
}

// byClass exports a number for each protocol and family.
func byClass(ch chan<- prometheus.Metric, d *prometheus.Desc, t prometheus.ValueType, n ledger.Counts) {
	for _, c := range []struct {
		proto  iptables.Proto
		family iptables.Family
		n      uint64
	}{
		{iptables.UDP, iptables.IPv4, n.UDP4},
		{iptables.UDP, iptables.IPv6, n.UDP6},
		{iptables.TCP, iptables.IPv4, n.TCP4},
		{iptables.TCP, iptables.IPv6, n.TCP6},
	} {
		ch <- prometheus.MustNewConstMetric(d, t, float64(c.n), c.proto.String(), c.family.String())
	}
}
