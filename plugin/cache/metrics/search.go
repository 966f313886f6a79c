package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Search returns the numbers of requests of all caches, of those along a search path, and of those
// that the denial of another question answered.
func Search() (requests, search, cut uint64) {
	return Sum(requestsTotal), Sum(searchTotal), Sum(cutTotal)
}

// Sum returns the sum of all series of a counter.
func Sum(vec *prometheus.CounterVec) (n uint64) {
	series := make(chan prometheus.Metric)
	go func() {
		vec.Collect(series)
		close(series)
	}()
	for s := range series {
		var m dto.Metric
		if s.Write(&m) == nil {
			n += uint64(m.GetCounter().GetValue())
		}
	}
	return n
}
