package querymetrics

import (
	"time"

	"github.com/coredns/coredns/plugin/metrics"
	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/prometheus/client_golang/prometheus"
)

// A Counter counts queries of one kind that were answered before CoreDNS saw them, one by
// one.
type Counter struct {
	series   *series
	response prometheus.Counter
	do       prometheus.Counter // nil: the queries have no DO bit
}

// NewCounter returns the metrics of a kind of queries to the plugin's server block. The
// sizes of the kind are not used.
func NewCounter(m *metrics.Metrics, k Kind, ipv6 bool) *Counter {
	writer := ""
	if m.Next != nil {
		writer = m.Next.Name()
	}
	c := &Counter{series: newSeries(labels{
		server: k.Server, zone: k.Zone, view: k.View, proto: "udp", six: ipv6, qtype: monitored(k.Type),
	})}
	c.response = c.series.response(k.Rcode, writer)
	if k.DO {
		c.do = vars.RequestDo.WithLabelValues(k.Server, k.Zone, k.View)
	}
	return c
}

// Add counts a query and its reply, with their sizes in bytes.
func (c *Counter) Add(query, reply int, took time.Duration) {
	c.series.requests.Inc()
	c.response.Inc()
	if c.do != nil {
		c.do.Inc()
	}
	c.series.duration.Observe(took.Seconds())
	c.series.requestSize.Observe(float64(query))
	c.series.responseSize.Observe(float64(reply))
}
