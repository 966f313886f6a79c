package cache

import (
	"sync/atomic"
	"time"

	"github.com/trackless-dns/trackless/plugin/cache/slowstart"
)

const (
	// minPatience and maxPatience bound how long a query waits for the response
	// to another before it is asked anew: a few times as long as the upstream
	// usually takes. Long enough for a resolver that has to ask others, and short
	// enough for clients that give up after a second.
	minPatience = 100 * time.Millisecond
	maxPatience = 200 * time.Millisecond
	// usualTimes is how many times its usual time the upstream may take.
	usualTimes = 4
)

// lull is how long nothing is heard of an upstream that is asked before that says
// something; of a slow one, a few times as long as it usually takes.
const lull = 500 * time.Millisecond

// responses is what is known of the upstream by its responses: how long they
// take, and whether there are any. The zero value knows nothing.
type responses struct {
	usual atomic.Int64 // nanoseconds to a response, on average; 0: not known yet

	count   atomic.Uint64             // of queries and responses, as they come
	silent  atomic.Bool               // queries have failed since the last response
	unheard atomic.Pointer[time.Time] // when the first query since the last response was sent
	heard   atomic.Uint64             // the count at the last response
	back    atomic.Uint64             // the count at the response that ended the last silence
	backAt  atomic.Pointer[time.Time] // when that was
	slow    lookers                   // of queries that would rather be asked anew then
	start   slowstart.Limit
}

// patience is how long to wait before somebody asks anew.
func (r *responses) patience() time.Duration {
	usual := time.Duration(r.usual.Load())
	if usual == 0 {
		return maxPatience
	}
	return min(max(usualTimes*usual, minPatience), maxPatience)
}

// sent is when a query was sent upstream.
type sent struct {
	count uint64
	at    time.Time
}

// sends notes that a query is sent upstream.
func (r *responses) sends() sent {
	s := sent{r.count.Add(1), time.Now()}
	if r.unheard.Load() == nil {
		at := s.at
		r.unheard.CompareAndSwap(nil, &at)
	}
	return s
}

// hears notes that the upstream responded to a query. Of two that are heard at
// once one may not count in the average.
func (r *responses) hears(q sent) {
	now := time.Now()
	took, usual := int64(now.Sub(q.at)), r.usual.Load()
	if usual == 0 {
		r.usual.Store(took)
	} else {
		r.usual.Store(usual + (took-usual)/8)
	}
	count := r.count.Add(1)
	r.heard.Store(count)
	first := r.unheard.Swap(nil)
	wasQuiet := first != nil && now.Sub(*first) > max(lull, usualTimes*time.Duration(usual))
	if r.silent.Swap(false) || wasQuiet {
		r.backAt.Store(&now)
		r.back.Store(count)
		r.start.Begin()
		go r.slow.check()
	}
}

// misses notes that the upstream did not respond to a query, and reports whether a
// silence has ended since it was sent.
func (r *responses) misses(q sent) (back bool) {
	if r.isSilent(q) {
		r.silent.Store(true)
	}
	return r.isBack(q)
}

// isSilent reports whether nothing was heard since the query was sent.
func (r *responses) isSilent(q sent) bool { return r.heard.Load() < q.count }

// isBack reports whether a silence has ended since the query was sent.
func (r *responses) isBack(q sent) bool { return r.back.Load() > q.count }

// isBackSince is isBack for a time.
func (r *responses) isBackSince(t time.Time) bool {
	at := r.backAt.Load()
	return at != nil && at.After(t)
}
