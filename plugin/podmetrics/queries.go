package podmetrics

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trackless-dns/trackless/conntrack/groups"
	"github.com/trackless-dns/trackless/kubeapi/names"
)

// Queries counts the queries of each client, from Start to Stop.
type Queries interface {
	Start()
	Stop()
	// Take calls f once for each client, with the number of its queries since Take was
	// called last. It returns the queries of all other clients.
	Take(f func(client netip.Addr, queries uint64)) (rest uint64)
}

// CountQueries sets what counts queries. It is called before the first Corefile is loaded.
func CountQueries(q Queries) { process.queries.source = q }

const (
	// halfLife is how long a query counts when the pods with the most are chosen: then it
	// counts half.
	halfLife = 5 * time.Minute
	// stay is how many times as much another pod must ask to take over a series. Without
	// it, pods that ask alike would take turns.
	stay = 1.25
	// silent is where a pod has not asked for so long that it has no series: an hour after
	// its only query.
	silent = 1.0 / 4096
	// maxKept bounds the pods that are kept in memory.
	maxKept = 4096
)

// who asks: a pod or the node by name, others by address.
type who struct {
	namespace, name string
	addr            netip.Addr
}

func (w who) labels() []string {
	if w.name == "" {
		return []string{"", w.addr.String()}
	}
	return []string{w.namespace, w.name}
}

func (w who) compare(other who) int {
	return cmp.Or(cmp.Compare(w.namespace, other.namespace), cmp.Compare(w.name, other.name), w.addr.Compare(other.addr))
}

// asker is a pod that has asked.
type asker struct {
	who
	total uint64  // of its series, which it may have left
	fresh uint64  // queries since the last reading
	score float64 // queries, of which each loses half its weight in halfLife
	had   bool    // it had a series at the last reading
	shown bool    // it has one
}

// queries divides the queries among the series. The queries between two readings count for
// the series of a pod that has one at both, else for the rest. So a series starts at zero or
// where it ended, and all series together grow by the queries that came.
type queries struct {
	source Queries // nil: nobody counts

	mu    sync.Mutex
	pods  map[who]*asker // nil: not started
	rest  uint64
	read  time.Time
	known map[netip.Addr]names.Owner // at the last reading
}

func (q *queries) start() {
	if q.source == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.source.Start()
	q.pods, q.rest, q.known, q.read = map[who]*asker{}, 0, nil, time.Now()
}

func (q *queries) stop() {
	if q.source == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.source.Stop()
	q.pods, q.known = nil, nil
}

// collect reads the counts, and sends the series of the top pods and the rest.
func (q *queries) collect(ch chan<- prometheus.Metric, top int, known, node map[netip.Addr]names.Owner) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.pods == nil {
		return
	}
	q.take(known, node)
	for _, p := range q.choose(top) {
		ch <- prometheus.MustNewConstMetric(podQueries, prometheus.CounterValue, float64(p.total), p.labels()...)
	}
	ch <- prometheus.MustNewConstMetric(podQueries, prometheus.CounterValue, float64(q.rest), "", groups.Rest)
	q.forget()
}

// take gives each pod the queries since the last reading.
func (q *queries) take(known, node map[netip.Addr]names.Owner) {
	now := time.Now()
	weight := math.Exp2(-float64(now.Sub(q.read)) / float64(halfLife))
	for _, p := range q.pods {
		p.score *= weight
	}
	q.rest += q.source.Take(func(a netip.Addr, n uint64) {
		w := whose(a, known, node)
		if w.name == "" {
			w = whose(a, q.known, node) // a pod that has ended since
		} else {
			delete(q.pods, who{addr: a}) // it asked before its name was known
		}
		p := q.pods[w]
		if p == nil {
			p = &asker{who: w}
			q.pods[w] = p
		}
		p.fresh += n
		p.score += float64(n)
	})
	q.read, q.known = now, known
}

// whose returns who has an address.
func whose(a netip.Addr, known, node map[netip.Addr]names.Owner) who {
	if o, ok := known[a]; ok {
		return who{namespace: o.Namespace, name: o.Name}
	}
	if _, ok := node[a]; ok || a.IsLoopback() {
		return who{name: groups.NodeItself}
	}
	return who{addr: a}
}

// choose returns the pods with series, and adds the fresh queries to the series.
func (q *queries) choose(top int) []*asker {
	first := make([]*asker, 0, top) // sorted
	for _, p := range q.pods {
		p.had, p.shown = p.shown, false
		if p.score <= silent || len(first) == top && before(first[top-1], p) < 0 {
			continue
		}
		i, _ := slices.BinarySearchFunc(first, p, before)
		first = slices.Insert(first[:min(len(first), top-1)], i, p)
	}
	for _, p := range first {
		p.shown = true
	}
	for _, p := range q.pods {
		if p.had && p.shown {
			p.total += p.fresh
		} else {
			q.rest += p.fresh
		}
		p.fresh = 0
	}
	return first
}

// before orders pods: first those that ask most.
func before(a, b *asker) int {
	if c := cmp.Compare(b.rank(), a.rank()); c != 0 {
		return c
	}
	return a.compare(b.who)
}

func (p *asker) rank() float64 {
	if p.had {
		return p.score * stay
	}
	return p.score
}

// forget drops the half of the pods whose figures matter least when there are too many. A
// pod that had a series needs its total if it comes back.
func (q *queries) forget() {
	if len(q.pods) <= maxKept {
		return
	}
	least := make([]*asker, 0, len(q.pods))
	for _, p := range q.pods {
		if !p.shown {
			least = append(least, p)
		}
	}
	slices.SortFunc(least, func(a, b *asker) int {
		if c := cmp.Compare(min(a.total, 1), min(b.total, 1)); c != 0 {
			return c
		}
		return before(b, a)
	})
	for _, p := range least[:len(q.pods)-maxKept/2] {
		delete(q.pods, p.who)
	}
}
