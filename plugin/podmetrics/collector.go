package podmetrics

import (
	"strings"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/trackless-dns/trackless/conntrack/groups"
)

// process counts for all server blocks of this process.
var process = newCounter()

func init() { prometheus.MustRegister(process) }

func description(subsystem, name, help string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(plugin.Namespace, subsystem, name), help, []string{"pod_namespace", "pod_name"}, nil)
}

var (
	entries = description("conntrack", "pod_entries",
		"Entries of the connection tracking table by pod, those of the pods with the most. (node) is the node itself, (rest) all other pods together.")
	dnsEntries = description("conntrack", "pod_dns_entries",
		"DNS entries of the connection tracking table by pod, of the pods with the most entries.")
	podQueries = description(directive, "queries_total",
		"Queries by pod, those of the pods that ask most. (node) is the node itself, (rest) all queries of pods without a series.")
)

// Describe implements prometheus.Collector.
func (c *counter) Describe(ch chan<- *prometheus.Desc) {
	ch <- entries
	ch <- dnsEntries
	ch <- podQueries
}

// Collect implements prometheus.Collector. It sends the queries until now and the entries of
// the last reading, and has the table read again. Without a server block it sends nothing,
// and before the first reading no entries.
func (c *counter) Collect(ch chan<- prometheus.Metric) {
	select {
	case c.scraped <- struct{}{}:
	default:
	}
	c.queries.collect(ch, int(c.top.Load()), of(&c.pods), of(&c.node))
	rows := c.latest.Load()
	if rows == nil {
		return
	}
	for _, r := range groups.Top(*rows, int(c.top.Load())) {
		namespace, pod, ok := strings.Cut(r.Name, "/")
		if !ok {
			namespace, pod = "", r.Name
		}
		ch <- prometheus.MustNewConstMetric(entries, prometheus.GaugeValue, float64(r.Entries), namespace, pod)
		ch <- prometheus.MustNewConstMetric(dnsEntries, prometheus.GaugeValue, float64(r.DNS), namespace, pod)
	}
}
