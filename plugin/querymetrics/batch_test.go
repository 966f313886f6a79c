package querymetrics

import (
	"testing"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metrics"
	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/miekg/dns"
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
	var got dto.Metric
	if err := vars.ResponseSize.WithLabelValues(server, ".", "", "udp").(interface{ Write(*dto.Metric) error }).Write(&got); err != nil {
		t.Fatal(err)
	}
	if h := got.GetHistogram(); h.GetSampleCount() != 5 || h.GetSampleSum() != 5*90+2*optSize {
		t.Errorf("%d responses of %g bytes", h.GetSampleCount(), h.GetSampleSum())
	}
}
