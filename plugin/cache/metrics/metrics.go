// Package metrics has the metrics of the cache, with the names and labels of CoreDNS's
// cache.
package metrics

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/trackless-dns/trackless/plugin/cache/store"
)

// types are the values of the label type, by class of answer.
var types = [2]string{"success", "denial"}

var (
	labels       = []string{"server", "zones", "view"}
	labelsByType = []string{"server", "type", "zones", "view"}
	// reasons are the values of the label reason.
	labelsByReason = []string{"server", "reason", "zones", "view"}
	reasons        = [2]string{"type", "below"}

	entriesGauge = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: plugin.Namespace,
		Subsystem: "cache",
		Name:      "entries",
		Help:      "The number of elements in the cache.",
	}, labelsByType)
	requestsTotal  = counter("requests_total", "The count of cache requests.", labels)
	hitsTotal      = counter("hits_total", "The count of cache hits.", labelsByType)
	missesTotal    = counter("misses_total", "The count of cache misses. Deprecated, derive misses from cache hits/requests counters.", labels)
	prefetchTotal  = counter("prefetch_total", "The number of times the cache has prefetched a cached item.", labels)
	dropsTotal     = counter("drops_total", "The number responses that are not cached, because the reply is malformed.", labels)
	staleTotal     = counter("served_stale_total", "The number of requests served from stale cache entries.", labels)
	evictionsTotal = counter("evictions_total", "The count of cache evictions.", labelsByType)
	cutTotal       = counter("cut_total", "The count of queries that were answered by the denial of another type of the name, or of a name above.", labelsByReason)
	cutProbesTotal = counter("cut_probes_total", "The count of queries sent upstream to learn whether all names below a name are denied.", labels)
	searchTotal    = counter("search_total", "The count of queries for external names below a domain of a search path.", labels)
	coalescedTotal = counter("coalesced_total", "The count of cache misses that were answered by the upstream query of another client.", labels)
)

func counter(name, help string, labels []string) *prometheus.CounterVec {
	return promauto.NewCounterVec(prometheus.CounterOpts{Namespace: plugin.Namespace, Subsystem: "cache", Name: name, Help: help}, labels)
}

// Counters are the metrics of a cache for one server. A lookup by label takes longer
// than a hit, so they are looked up once.
type Counters struct {
	Requests, Misses, Prefetches, Drops, Stale, Coalesced, CutProbes, Search prometheus.Counter
	// Entries are the numbers of positive answers and of denials in the cache.
	Entries [2]prometheus.Gauge

	// ByOther are the hits of denials of other questions: of another type, or of a name above.
	ByOther [2]prometheus.Counter

	hits, evictions [2]prometheus.Counter
}

func newCounters(server, zones, view string) *Counters {
	c := &Counters{
		Requests:   requestsTotal.WithLabelValues(server, zones, view),
		Misses:     missesTotal.WithLabelValues(server, zones, view),
		Prefetches: prefetchTotal.WithLabelValues(server, zones, view),
		Drops:      dropsTotal.WithLabelValues(server, zones, view),
		Stale:      staleTotal.WithLabelValues(server, zones, view),
		Coalesced:  coalescedTotal.WithLabelValues(server, zones, view),
		Search:     searchTotal.WithLabelValues(server, zones, view),
		CutProbes:  cutProbesTotal.WithLabelValues(server, zones, view),
	}
	for i, reason := range reasons {
		c.ByOther[i] = cutTotal.WithLabelValues(server, reason, zones, view)
	}
	for i, t := range types {
		c.hits[i] = hitsTotal.WithLabelValues(server, t, zones, view)
		c.evictions[i] = evictionsTotal.WithLabelValues(server, t, zones, view)
		c.Entries[i] = entriesGauge.WithLabelValues(server, t, zones, view)
	}
	return c
}

// Hits counts n requests and their hits, which a fast path has answered.
func (c *Counters) Hits(n uint64, isDenial bool) {
	c.Requests.Add(float64(n))
	if isDenial {
		c.hits[1].Add(float64(n))
	} else {
		c.hits[0].Add(float64(n))
	}
}

// Found counts a hit by the kind of the answer. The request is counted already.
func (c *Counters) Found(k store.Kind) { c.hits[kindIndex(k)].Inc() }

// Cut counts a hit of a denial of another question: one of a name above, or one of another
// type. The request is counted already.
func (c *Counters) Cut(below bool) {
	c.hits[1].Inc()
	if below {
		c.ByOther[1].Inc()
	} else {
		c.ByOther[0].Inc()
	}
}

// Stored counts the answers that were evicted for a new one, and the answers that
// there are now.
func (c *Counters) Stored(s *store.Store, gone store.Evicted) {
	for i, n := range gone.Live {
		if n > 0 {
			c.evictions[i].Add(float64(n))
		}
	}
	c.setEntries(s)
}

func (c *Counters) setEntries(s *store.Store) {
	c.Entries[0].Set(float64(s.Len(store.Positive)))
	c.Entries[1].Set(float64(s.Len(store.Negative)))
}

// kindIndex is the index of a kind's type label.
func kindIndex(k store.Kind) int {
	if k == store.Negative {
		return 1
	}
	return 0
}

// ByServer has the Counters for each server of the cache. The map is copied when a
// server is added, so that a lookup takes no lock and allocates nothing.
type ByServer struct {
	mu sync.Mutex
	m  atomic.Pointer[map[string]*Counters]
}

// For returns the Counters for the server with this address, as CoreDNS's
// metrics.WithServer returns it. The other labels must be the same at each call.
func (b *ByServer) For(server, zones, view string) *Counters {
	if m := b.m.Load(); m != nil {
		if found := (*m)[server]; found != nil {
			return found
		}
	}
	return b.add(server, zones, view)
}

func (b *ByServer) add(server, zones, view string) *Counters {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := make(map[string]*Counters)
	if old := b.m.Load(); old != nil {
		if found := (*old)[server]; found != nil {
			return found
		}
		maps.Copy(m, *old)
	}
	m[server] = newCounters(server, zones, view)
	b.m.Store(&m)
	return m[server]
}

// SetEntries sets the gauges to the numbers of answers in the store.
func (b *ByServer) SetEntries(s *store.Store) {
	if m := b.m.Load(); m != nil {
		for _, c := range *m {
			c.setEntries(s)
		}
	}
}
