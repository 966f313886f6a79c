package querymetrics

import (
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/metrics"
	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
)

func TestCounter(t *testing.T) {
	m := &metrics.Metrics{Next: named{name: "errors"}}
	const server = "dns://10.96.0.10:5355"
	kind := Kind{Server: server, Zone: ".", Type: dns.TypeAAAA, Rcode: dns.RcodeNameError}
	NewCounter(m, kind, false).Add(30, 90, time.Millisecond)
	kind.DO = true
	six := NewCounter(m, kind, true)
	six.Add(41, 101, time.Millisecond)
	six.Add(41, 101, time.Millisecond)
	for name, row := range map[string]struct{ got, want float64 }{
		"IPv4":      {testutil.ToFloat64(vars.RequestCount.WithLabelValues(server, ".", "", "udp", "1", "AAAA")), 1},
		"IPv6":      {testutil.ToFloat64(vars.RequestCount.WithLabelValues(server, ".", "", "udp", "2", "AAAA")), 2},
		"responses": {testutil.ToFloat64(vars.ResponseRcode.WithLabelValues(server, ".", "", "NXDOMAIN", "errors")), 3},
		"DO":        {testutil.ToFloat64(vars.RequestDo.WithLabelValues(server, ".", "")), 2},
	} {
		if row.got != row.want {
			t.Errorf("%s: %g, want %g", name, row.got, row.want)
		}
	}
	var got dto.Metric
	if err := vars.ResponseSize.WithLabelValues(server, ".", "", "udp").(interface{ Write(*dto.Metric) error }).Write(&got); err != nil {
		t.Fatal(err)
	}
	if h := got.GetHistogram(); h.GetSampleCount() != 3 || h.GetSampleSum() != 90+2*101 {
		t.Errorf("%d responses of %g bytes", h.GetSampleCount(), h.GetSampleSum())
	}
}

func BenchmarkCounter(b *testing.B) {
	c := NewCounter(&metrics.Metrics{}, Kind{Server: "dns://10.96.0.10:5356", Zone: ".", Type: dns.TypeA}, false)
	b.ReportAllocs()
	for b.Loop() {
		c.Add(30, 90, 10*time.Microsecond)
	}
}
