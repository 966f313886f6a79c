package notrack

import (
	"strconv"
	"strings"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/trackless-dns/trackless/agent"
	"github.com/trackless-dns/trackless/agent/kernelcounters"
	"github.com/trackless-dns/trackless/agent/tablewalk"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/handover"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile"
)

// metric has the name, help and reader of one metric.
type metric struct {
	subsystem, name, help string
	labels                []string
	read                  func(s *scrape, out output)

	desc *prometheus.Desc
}

const conntrackSubsystem = "conntrack"

// nodeMetrics need no rules, only connection tracking.
var nodeMetrics = []*metric{
	{subsystem: conntrackSubsystem, name: "entries", help: "Entries in the connection tracking table of this network namespace (nf_conntrack_count).",
		read: func(s *scrape, out output) { out.gauge(float64(s.limits.Count)) }},
	{subsystem: conntrackSubsystem, name: "entries_limit", help: "Entries at which the kernel drops new flows (nf_conntrack_max), 0 where there is no limit.",
		read: func(s *scrape, out output) { out.gauge(float64(s.limits.Max)) }},
	{subsystem: conntrackSubsystem, name: "buckets", help: "Buckets of the hash that all network namespaces share (nf_conntrack_buckets).",
		read: func(s *scrape, out output) { out.gauge(float64(s.limits.Buckets)) }},
}

// ruleMetrics exist while a notrack block is in force.
var ruleMetrics = append([]*metric{
	{name: "attached", help: "Whether DNS to the listen address is untracked (1) or goes where it would go without Trackless (0).", labels: []string{"address"},
		read: func(s *scrape, out output) {
			for a, attached := range s.reconciler.Status() {
				out.gauge(number(attached), a.String())
			}
		}},
	{name: "dry_run", help: "Whether the Corefile asks to count what would be untracked, and to untrack nothing.",
		read: func(s *scrape, out output) { out.gauge(number(s.standing.DryRun)) }},
	{name: "packets_total", help: "Packets untracked by the rules; what this node sends to itself passes two hooks and counts once.", labels: []string{"direction", "family", "proto"},
		read: readPackets},
	{name: "backend_info", help: "The backend in force, its table, whether the kernel removes the rules when the process dies, and why this backend was chosen.", labels: []string{"backend", "table", "owned", "reason"},
		read: func(s *scrape, out output) {
			out.gauge(1, s.backend.Name(), s.backend.Table(), strconv.FormatBool(s.backend.Owned()), s.reason)
		}},
	{name: "lease_lapses_total", help: "Leases that ran out although this process tried to hold them.",
		read: func(s *scrape, out output) { out.counter(float64(s.stats.Lapses)) }},
	{name: "overloads_total", help: "Times that queries failed over to the cluster's DNS before a lease ran out, since too many were lost to the CPU limit of this process.",
		read: func(s *scrape, out output) { out.counter(float64(s.stats.Overloads)) }},
	{name: "wait_seconds", help: "Time until queries come back from the cluster's DNS after lapses, by the cause of the last lapse; 0 without a wait.", labels: []string{"cause"},
		read: readWait},
	{name: "repairs_total", help: "Rules, addresses and links that others removed or changed, and that were restored.", labels: []string{"reason"},
		read: func(s *scrape, out output) {
			for _, reason := range []string{reconcile.RepairAddress, reconcile.RepairLink, reconcile.RepairRules} {
				out.counter(float64(s.stats.Repairs[reason]), reason)
			}
		}},
	{name: "sync_duration_seconds", help: "Time to compare rules, addresses, uplinks and timeouts with the desired state and to repair them, at each `sync` and each announced change.",
		read: func(s *scrape, out output) { out.summary(s.stats.Syncs, s.stats.SyncTime) }},
	{name: "entries_avoided", help: "Conntrack entries that `conntrack -L` would show now had DNS to the listen addresses been tracked.", labels: []string{"proto", "family"},
		read: func(s *scrape, out output) { out.byClass(prometheus.GaugeValue, s.avoided.Counts) }},
	{name: "entries_avoided_error", help: "The true sum of entries_avoided is at most so many entries away, with a probability of 99.7 %; 0 if it is exact.",
		read: func(s *scrape, out output) { out.gauge(s.avoided.Error) }},
	{name: "flows_avoided_total", help: "Conntrack entries that DNS to the listen addresses would have made.", labels: []string{"proto", "family"},
		read: func(s *scrape, out output) { out.byClass(prometheus.CounterValue, s.agent.Ledger.Flows()) }},
	{name: "warm_start_seconds", help: "How long the start of this process waited for the state of the instance that it replaced; 0 if there was none.",
		read: func(s *scrape, out output) { out.gauge(s.agent.Succession.Stats().Waited.Seconds()) }},
	{name: "warm_start_sections", help: "Parts of the state of the instance that this process replaced, by what became of them.", labels: []string{"section", "result"},
		read: readWarmStart},
	{name: "warm_start_bytes", help: "Bytes that were taken of the state of the instance that this process replaced.", labels: []string{"section"},
		read: readWarmBytes},
	{name: "warm_names", help: "Names that this process asked for at its start, as the one before was asked for them most, by what became of them.", labels: []string{"result"},
		read: readWarmNames},
	{name: "warm_names_seconds", help: "How long the start of this process waited for the answers to these names.",
		read: func(s *scrape, out output) { out.gauge(s.agent.Recalled().Took.Seconds()) }},
	{name: "handovers_total", help: "Times that this process gave its state to another instance, whole or broken.", labels: []string{"result"},
		read: func(s *scrape, out output) {
			stats := s.agent.Succession.Stats()
			out.counter(float64(stats.Given), "whole")
			out.counter(float64(stats.Broken), "broken")
		}},
	{subsystem: conntrackSubsystem, name: "tracking_info", help: "Whether packets of this network namespace are tracked at all; where they are not, reason says why, and no entries are avoided.", labels: []string{"active", "reason"},
		read: func(s *scrape, out output) {
			if s.walk != nil {
				out.gauge(1, strconv.FormatBool(s.walk.Idle == ""), s.walk.Idle)
			}
		}},
	{subsystem: conntrackSubsystem, name: "dns_entries", help: "Entries of DNS at the last walk of the table: client to a listen address, upstream from us to a forward target, bypass from this node or its pods to another server.", labels: []string{"role", "proto", "family"},
		read: readDNSEntries},
	{subsystem: conntrackSubsystem, name: "walk_timestamp_seconds", help: "When the table was last walked.",
		read: func(s *scrape, out output) {
			if s.walk != nil {
				out.gauge(float64(s.walk.At.UnixMilli()) / 1000)
			}
		}},
	{subsystem: conntrackSubsystem, name: "walk_interval_seconds", help: "Shortest time between two walks of the table, so long that they take at most 1 % of a CPU.",
		read: func(s *scrape, out output) {
			if s.walk != nil {
				out.gauge(s.walk.Interval.Seconds())
			}
		}},
	{subsystem: conntrackSubsystem, name: "walk_cpu_seconds_total", help: "Processor time that walks of the table have taken.",
		read: func(s *scrape, out output) { out.counter(s.agent.Table.CPUTime().Seconds()) }},
}, kernelMetrics()...)

// kernelMetrics returns the metrics of the kernel's counters, under the kernel's names.
func kernelMetrics() []*metric {
	var out []*metric
	for _, c := range new(conntrack.CPUStats).Counters() {
		out = append(out, &metric{
			subsystem: conntrackSubsystem, name: c.Name + "_total",
			help: strings.ToUpper(c.Meaning[:1]) + c.Meaning[1:] + ".",
			read: func(s *scrape, out output) {
				if value, ok := s.kernel[c.Name]; ok {
					out.counter(float64(value))
				}
			},
		})
	}
	return out
}

// init makes the descriptions and registers the collector.
func init() {
	for _, metrics := range [][]*metric{nodeMetrics, ruleMetrics} {
		for _, m := range metrics {
			if m.subsystem == "" {
				m.subsystem = directive
			}
			m.desc = prometheus.NewDesc(prometheus.BuildFQName(plugin.Namespace, m.subsystem, m.name), m.help, m.labels, nil)
		}
	}
	prometheus.MustRegister(&collector{agent: process, rules: process.Rules, procRoot: "/proc", stats: kernelcounters.Read})
}

func readPackets(s *scrape, out output) {
	counters, err := s.reconciler.Counters()
	if err != nil {
		limited.Warningf("scrape-packets", "packet counters are missing from this scrape: %v", err)
		return
	}
	for _, k := range iptables.CounterKeys() {
		out.counter(float64(counters[k]), k.Direction.String(), k.Family.String(), k.Proto.String())
	}
}

func readWait(s *scrape, out output) {
	for _, cause := range reconcile.Causes() {
		wait := 0.0
		if cause == s.standing.Wait.Cause && !s.standing.Wait.Until.IsZero() {
			wait = max(0, time.Until(s.standing.Wait.Until).Seconds())
		}
		out.gauge(wait, cause.String())
	}
}

// readWarmStart has every section and result, so that a result that is missing is 0.
func readWarmStart(s *scrape, out output) {
	sections := s.agent.Succession.Stats().Sections
	for _, name := range agent.Sections {
		for _, result := range handover.Results {
			n := 0
			for _, o := range sections {
				if o.Name == name && o.Result == result {
					n++
				}
			}
			out.gauge(float64(n), name, string(result))
		}
	}
}

func readWarmBytes(s *scrape, out output) {
	bytes := map[string]int{}
	for _, o := range s.agent.Succession.Stats().Sections {
		bytes[o.Name] += o.Bytes
	}
	for _, name := range agent.Sections {
		out.gauge(float64(bytes[name]), name)
	}
}

func readWarmNames(s *scrape, out output) {
	f := s.agent.Recalled()
	out.gauge(float64(f.Answered), "answered")
	out.gauge(float64(f.Failed), "failed")
	out.gauge(float64(f.Cached), "cached")
	out.gauge(float64(f.Gone), "gone")
	out.gauge(float64(f.Unasked), "unasked")
}

func readDNSEntries(s *scrape, out output) {
	if s.walk == nil {
		return
	}
	for _, class := range tablewalk.Classes() {
		out.gauge(float64(s.walk.Entries[class]), class.Role.String(), class.Proto.String(), class.Family.String())
	}
}
