package querymetrics

import (
	"maps"
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// CoreDNS's histograms, with the observations of batches in them.
var (
	requestDuration = instead(vars.RequestDuration)
	requestSize     = instead(vars.RequestSize)
	responseSize    = instead(vars.ResponseSize)
)

// A histograms is a vector of histograms, to which many equal observations can be added at
// once. The vector itself takes one at a time, for 0.1 µs each. It is exported in the place
// of the vector, with the same series.
type histograms struct {
	*prometheus.HistogramVec

	mu    sync.Mutex
	added map[string]*observations // by labels
}

// instead registers the histograms in the place of a registered vector.
func instead(vec *prometheus.HistogramVec) *histograms {
	h := &histograms{HistogramVec: vec, added: map[string]*observations{}}
	prometheus.Unregister(vec)
	prometheus.MustRegister(h)
	return h
}

// observations are numbers of observations, by value.
type observations struct {
	mu     sync.Mutex
	counts map[float64]uint64
}

// observe adds n observations of a value.
func (o *observations) observe(value float64, n uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.counts[value] += n
}

// of returns the observations that are added to one series.
func (h *histograms) of(labels ...string) *observations {
	key := keyOf(read(h.WithLabelValues(labels...).(prometheus.Metric)))
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.added[key] == nil {
		h.added[key] = &observations{counts: map[float64]uint64{}}
	}
	return h.added[key]
}

func read(m prometheus.Metric) *dto.Metric {
	var out dto.Metric
	_ = m.Write(&out) // a histogram always can
	return &out
}

// keyOf joins the labels, which Write sorts by name.
func keyOf(m *dto.Metric) string {
	var b strings.Builder
	for _, l := range m.GetLabel() {
		b.WriteString(l.GetValue())
		b.WriteByte(0xff) // it is in no UTF-8
	}
	return b.String()
}

// Collect implements prometheus.Collector.
func (h *histograms) Collect(ch chan<- prometheus.Metric) {
	own := make(chan prometheus.Metric)
	go func() {
		defer close(own)
		h.HistogramVec.Collect(own)
	}()
	for m := range own {
		ch <- sum{m, h}
	}
}

// sum is a histogram with the observations that were added to it.
type sum struct {
	prometheus.Metric
	of *histograms
}

// Write implements prometheus.Metric.
func (s sum) Write(out *dto.Metric) error {
	if err := s.Metric.Write(out); err != nil {
		return err
	}
	s.of.mu.Lock()
	o := s.of.added[keyOf(out)]
	s.of.mu.Unlock()
	if o != nil {
		o.addTo(out.GetHistogram())
	}
	return nil
}

func (o *observations) addTo(h *dto.Histogram) {
	o.mu.Lock()
	defer o.mu.Unlock()
	native := unpack(h)
	for value, n := range o.counts {
		*h.SampleCount += n
		*h.SampleSum += value * float64(n)
		for _, b := range h.Bucket {
			if value <= b.GetUpperBound() {
				*b.CumulativeCount += n
			}
		}
		if h.Schema != nil {
			native[bucketOf(value, h.GetSchema())] += int64(n)
		}
	}
	if h.Schema != nil && len(native) > 0 {
		pack(h, native)
	}
}

// bucketOf returns the bucket of a positive value in a native histogram. A power of two is
// the upper bound of its bucket, and each doubling has 2^schema buckets.
func bucketOf(value float64, schema int32) int32 {
	half, exponent := math.Frexp(value)
	perDoubling := math.Ldexp(1, int(schema))
	return int32(math.Ceil((math.Log2(2*half) + float64(exponent-1)) * perDoubling))
}

// unpack returns the counts of a native histogram's buckets for positive values. Between two
// spans are empty buckets, and each count is told as its difference from the one before.
func unpack(h *dto.Histogram) map[int32]int64 {
	out := map[int32]int64{}
	bucket, count, deltas := int32(0), int64(0), h.PositiveDelta
	for _, span := range h.PositiveSpan {
		bucket += span.GetOffset()
		for range span.GetLength() {
			count += deltas[0]
			deltas = deltas[1:]
			out[bucket] = count
			bucket++
		}
	}
	return out
}

// pack replaces the counts of a native histogram's buckets for positive values.
func pack(h *dto.Histogram, counts map[int32]int64) {
	h.PositiveSpan, h.PositiveDelta = nil, nil
	next, before := int32(0), int64(0)
	for _, bucket := range slices.Sorted(maps.Keys(counts)) {
		if n := len(h.PositiveSpan); n > 0 && bucket == next {
			*h.PositiveSpan[n-1].Length++
		} else {
			h.PositiveSpan = append(h.PositiveSpan, &dto.BucketSpan{Offset: new(bucket - next), Length: new(uint32(1))})
		}
		h.PositiveDelta = append(h.PositiveDelta, counts[bucket]-before)
		next, before = bucket+1, counts[bucket]
	}
}
