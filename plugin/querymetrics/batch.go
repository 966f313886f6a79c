package querymetrics

import (
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metrics"
	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/prometheus/client_golang/prometheus"
)

// A Kind is what queries over UDP have in common that were answered before CoreDNS saw
// them.
type Kind struct {
	Server, Zone, View string
	Type               uint16
	Rcode              int
	DO                 bool
	// Query and Reply are sizes in bytes, without an OPT record.
	Query, Reply int
}

// optSize is the size in bytes of an OPT record without options (RFC 6891 section 6.1.2).
const optSize = 11

// answerTime is what such an answer takes, in seconds: the kernel measures none of them.
const answerTime = 1e-6

// A Batch counts queries of one kind, in the metrics of the plugin.
type Batch struct {
	kind      Kind
	families  [2]*series
	responses [2]prometheus.Counter
	do        prometheus.Counter

	duration, requestSize, responseSize *observations
}

// NewBatch returns the metrics of a kind of queries to the plugin's server block.
func NewBatch(m *metrics.Metrics, k Kind) *Batch {
	const proto = "udp"
	b := &Batch{
		kind: k, do: vars.RequestDo.WithLabelValues(k.Server, k.Zone, k.View),
		duration:     requestDuration.of(k.Server, k.Zone, k.View),
		requestSize:  requestSize.of(k.Server, k.Zone, k.View, proto),
		responseSize: responseSize.of(k.Server, k.Zone, k.View, proto),
	}
	writer := ""
	if m.Next != nil {
		writer = m.Next.Name()
	}
	for i := range b.families {
		b.families[i] = newSeries(labels{
			server: k.Server, zone: k.Zone, view: k.View, proto: proto, six: i == 1, qtype: monitored(k.Type),
		})
		b.responses[i] = b.families[i].response(k.Rcode, writer)
	}
	return b
}

// Add counts n queries. Their messages have an OPT record if edns is set.
func (b *Batch) Add(n uint64, edns, ipv6 bool) {
	family, opt := 0, 0
	if ipv6 {
		family = 1
	}
	if edns {
		opt = optSize
	}
	s := b.families[family]
	s.requests.Add(float64(n))
	b.responses[family].Add(float64(n))
	if b.kind.DO {
		b.do.Add(float64(n))
	}
	b.duration.observe(answerTime, n)
	b.requestSize.observe(float64(b.kind.Query+opt), n)
	b.responseSize.observe(float64(b.kind.Reply+opt), n)
}

// Zone returns the label of the zone of a name.
func Zone(m *metrics.Metrics, name string) string {
	if zone := plugin.Zones(m.ZoneNames()).Matches(name); zone != "" {
		return zone
	}
	return "."
}
