package querymetrics

import (
	"math"
	"slices"
	"testing"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metrics"
	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
)

// named is a plugin with a name.
type named struct {
	plugin.Handler
	name string
}

func (n named) Name() string { return n.name }

func TestBatch(t *testing.T) {
	m := &metrics.Metrics{Next: named{name: "errors"}}
	const server = "dns://10.96.0.10:5353"
	b := NewBatch(m, Kind{Server: server, Zone: ".", Type: dns.TypeAAAA, Rcode: dns.RcodeNameError, DO: true, Query: 30, Reply: 90})
	b.Add(3, false, false)
	b.Add(2, true, true)
	for name, row := range map[string]struct{ got, want float64 }{
		"IPv4":      {testutil.ToFloat64(vars.RequestCount.WithLabelValues(server, ".", "", "udp", "1", "AAAA")), 3},
		"IPv6":      {testutil.ToFloat64(vars.RequestCount.WithLabelValues(server, ".", "", "udp", "2", "AAAA")), 2},
		"responses": {testutil.ToFloat64(vars.ResponseRcode.WithLabelValues(server, ".", "", "NXDOMAIN", "errors")), 5},
		"DO":        {testutil.ToFloat64(vars.RequestDo.WithLabelValues(server, ".", "")), 5},
	} {
		if row.got != row.want {
			t.Errorf("%s: %g, want %g", name, row.got, row.want)
		}
	}
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{
		"coredns_dns_request_duration_seconds": 5 * answerTime, "coredns_dns_request_size_bytes": 5*30 + 2*optSize, "coredns_dns_response_size_bytes": 5*90 + 2*optSize,
	} {
		n := 0
		for _, f := range families {
			if f.GetName() != name {
				continue
			}
			for _, m := range f.GetMetric() {
				if h := m.GetHistogram(); slices.ContainsFunc(m.Label, func(l *dto.LabelPair) bool { return l.GetValue() == server }) {
					if n++; h.GetSampleCount() != 5 || math.Abs(h.GetSampleSum()-want) > 1e-12 {
						t.Errorf("%s: %d of %g", name, h.GetSampleCount(), h.GetSampleSum())
					}
				}
			}
		}
		if n != 1 {
			t.Errorf("%s: %d series", name, n)
		}
	}
}
