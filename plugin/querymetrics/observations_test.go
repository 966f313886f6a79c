package querymetrics

import (
	"maps"
	"math"
	"testing"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Many observations at once give the same histogram as one after the other, and the same
// series.
func TestObservationsAtOnce(t *testing.T) {
	opts := prometheus.HistogramOpts{Name: "sizes", Buckets: []float64{0, 100, 511, 1023}, NativeHistogramBucketFactor: plugin.NativeHistogramBucketFactor}
	values := map[float64]uint64{1e-6: 3, 0.5: 1, 1: 2, 12: 5, 64: 7, 65: 1, 100: 4, 511: 2, 512: 9, 1024: 1, 4000.5: 1}
	registry := prometheus.NewRegistry()
	h := &histograms{HistogramVec: prometheus.NewHistogramVec(opts, []string{"server", "proto"}), added: map[string]*observations{}}
	registry.MustRegister(h)
	each := prometheus.NewHistogramVec(opts, []string{"server", "proto"})
	for _, server := range []string{"a", "b"} {
		// Other ways of answering observe one by one.
		h.WithLabelValues(server, "udp").Observe(90)
		each.WithLabelValues(server, "udp").Observe(90)
		for value, n := range values {
			h.of(server, "udp").observe(value, n)
			for range n {
				each.WithLabelValues(server, "udp").Observe(value)
			}
		}
	}
	h.WithLabelValues("b", "tcp").Observe(7)
	each.WithLabelValues("b", "tcp").Observe(7)
	families, err := registry.Gather()
	if err != nil || len(families) != 1 || len(families[0].GetMetric()) != 3 {
		t.Fatalf("gathered %v, %v", families, err)
	}
	for _, got := range families[0].GetMetric() {
		want := read(each.WithLabelValues(got.Label[1].GetValue(), got.Label[0].GetValue()).(prometheus.Metric))
		compare(t, got.GetHistogram(), want.GetHistogram())
	}
}

func compare(t *testing.T, got, want *dto.Histogram) {
	t.Helper()
	if got.GetSampleCount() != want.GetSampleCount() || math.Abs(got.GetSampleSum()-want.GetSampleSum()) > 1e-9 {
		t.Errorf("%d of %g, want %d of %g", got.GetSampleCount(), got.GetSampleSum(), want.GetSampleCount(), want.GetSampleSum())
	}
	for i, b := range want.GetBucket() {
		if n := got.GetBucket()[i].GetCumulativeCount(); n != b.GetCumulativeCount() {
			t.Errorf("%d up to %g, want %d", n, b.GetUpperBound(), b.GetCumulativeCount())
		}
	}
	isEmpty := func(_ int32, n int64) bool { return n == 0 }
	native := unpack(want)
	maps.DeleteFunc(native, isEmpty)
	if found := unpack(got); len(native) == 0 || !maps.Equal(found, native) {
		t.Errorf("native buckets %v, want %v", found, native)
	}
}

func BenchmarkBatch(b *testing.B) {
	o := &observations{counts: map[float64]uint64{}}
	b.ReportAllocs()
	for b.Loop() {
		o.observe(90, 20_000)
	}
}
