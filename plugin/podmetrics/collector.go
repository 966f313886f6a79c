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

func description(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(plugin.Namespace, "conntrack", name), help, []string{"pod_namespace", "pod_name"}, nil)
}

var (
	entries = description("pod_entries",
		"Entries of the connection tracking table by pod, those of the pods with the most. (node) is the node itself, (rest) all other pods together.")
	dnsEntries = description("pod_dns_entries",
		"DNS entries of the connection tracking table by pod, of the pods with the most entries.")
)

// Describe implements prometheus.Collector.
func (c *counter) Describe(ch chan<- *prometheus.Desc) {
	ch <- entries
	ch <- dnsEntries
}

// Collect implements prometheus.Collector. It sends what the last reading found, and has the
// table read again. Without a server block, and before the first reading, it sends nothing.
func (c *counter) Collect(ch chan<- prometheus.Metric) {
	select {
	case c.scraped <- struct{}{}:
	default:
	}
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
