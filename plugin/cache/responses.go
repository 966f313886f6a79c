package cache

import (
	"sync/atomic"
	"time"

	"github.com/trackless-dns/trackless/plugin/cache/flight"
	"github.com/trackless-dns/trackless/plugin/cache/slowstart"
)

// flights has the answers that are being asked for, and the responses of the upstream.
type flights struct {
	flight.Table
	responses responses
}

// gone is the outcome of an attempt without a result: the client has gone, or a plugin
// panicked.
var gone = flight.Outcome{Failed: true, Partial: true}

const (
	// A query waits for the response to another one a few times as long as the upstream
	// usually takes, from minPatience to maxPatience. Then it is asked anew. That is
	// long enough for a resolver that must ask others, and short enough for clients
	// that give up after a second.
	minPatience = 100 * time.Millisecond
	maxPatience = 200 * time.Millisecond
	// usualTimes is how many times its usual time the upstream may take.
	usualTimes = 4
)

// silence is how long an upstream must not respond until its next response counts as a
// recovery. For a slow upstream it is longer: a few times its usual time.
const silence = 500 * time.Millisecond

// responses records how long the upstream takes to respond, and whether it responds at
// all. The zero value is ready.
type responses struct {
	usual atomic.Int64 // nanoseconds to a response, on average; 0: none yet

	count      atomic.Uint64             // numbers queries and responses
	silent     atomic.Bool               // queries have failed since the last response
	unanswered atomic.Pointer[time.Time] // when the first query since the last response was sent
	last       atomic.Uint64             // the number of the last response
	back       atomic.Uint64             // the number of the response that ended the last silence
	backAt     atomic.Pointer[time.Time] // when it arrived
	slow       watchers                  // of queries to be asked anew after a recovery
	start      slowstart.Limit
}

// patience returns how long a query waits for another one before it is asked anew.
func (r *responses) patience() time.Duration {
	usual := time.Duration(r.usual.Load())
	if usual == 0 {
		return maxPatience
	}
	return min(max(usualTimes*usual, minPatience), maxPatience)
}

// sent says when a query was sent upstream.
type sent struct {
	count uint64
	at    time.Time
}

// sending records that a query is sent upstream.
func (r *responses) sending() sent {
	s := sent{r.count.Add(1), time.Now()}
	if r.unanswered.Load() == nil {
		at := s.at
		r.unanswered.CompareAndSwap(nil, &at)
	}
	return s
}

// responded records that the upstream responded to a query. If two responses arrive at the
// same time, the average may count only one.
func (r *responses) responded(q sent) {
	now := time.Now()
	took, usual := int64(now.Sub(q.at)), r.usual.Load()
	if usual == 0 {
		r.usual.Store(took)
	} else {
		r.usual.Store(usual + (took-usual)/8)
	}
	count := r.count.Add(1)
	r.last.Store(count)
	first := r.unanswered.Swap(nil)
	wasQuiet := first != nil && now.Sub(*first) > max(silence, usualTimes*time.Duration(usual))
	if r.silent.Swap(false) || wasQuiet {
		r.backAt.Store(&now)
		r.back.Store(count)
		r.start.Begin()
		go r.slow.check()
	}
}

// failed records that the upstream did not respond to a query. It reports whether a silence
// has ended since the query was sent.
func (r *responses) failed(q sent) (back bool) {
	if r.isSilent(q) {
		r.silent.Store(true)
	}
	return r.isBack(q)
}

// isSilent reports whether there was no response since the query was sent.
func (r *responses) isSilent(q sent) bool { return r.last.Load() < q.count }

// isBack reports whether a silence has ended since the query was sent.
func (r *responses) isBack(q sent) bool { return r.back.Load() > q.count }

// isBackSince is isBack for a time.
func (r *responses) isBackSince(t time.Time) bool {
	at := r.backAt.Load()
	return at != nil && at.After(t)
}
