package cache

import (
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// Queries for the same answer that come while it is being asked for share the
// response. Sharing must cost no client anything that it would have without:
//
//   - Only what is stored for everybody is shared. After any other response
//     those who waited ask for themselves.
//   - The response is shared before the client that set the query off is
//     written to: that client may never read.
//   - A lost packet is nobody else's: who has waited for some time has it asked
//     anew, for all who wait. Nobody does so more than once.
//   - A failure without a response is shared with those only who were there
//     when it was asked, and asked the same way.
//   - A query that comes of a query under way does not wait for it.

const (
	// maxWaiters is how many queries may wait for others at a time. More go
	// upstream themselves, so that waiting costs a bounded amount of memory.
	maxWaiters = 16384
	// maxAsking is how many attempts may be under way for an answer at a time. Where
	// so many are not responded to no other is.
	maxAsking = 4
	// maxRefreshes is how many refreshes may be under way at a time.
	maxRefreshes = 256
)

// outcome is what came of a query upstream, for those who waited for it.
type outcome struct {
	// shared: everybody may have the response, which is stored for everybody.
	shared bool
	// failed: there was no response, since the upstream was not reached; and back:
	// it has responded to others since.
	failed, back bool
	// partial: there was more to the response than is here.
	partial bool
	// private is the response of an attempt in the background to the query on
	// whose behalf it was, which alone may have it if it is not shared.
	private *dns.Msg
	// answered: there is a response; otherwise code and err are all.
	answered  bool
	answer    wire.Answer
	ttl       uint32
	wildcard  string
	refreshed bool // the response replaces a stale answer

	code int
	err  error
}

// class is how a query asks for its answer. The upstream may treat queries of
// different classes differently.
type class struct {
	edns, tcp bool
	options   uint64 // a hash of the EDNS options; 0: none
}

// flights are the answers that are being asked for, by key. The zero value is
// ready. Many cold names at a time must not queue for one lock.
type flights struct {
	shards    [64]flightShard
	waiters   atomic.Int64
	order     atomic.Uint64 // of attempts and waiters, as they come
	responses responses
}

// flightShard has a part of the keys.
type flightShard struct {
	mu      sync.Mutex
	all     *flights
	byKey   map[string]*flight
	private map[privateKey]time.Time // until when it is of no use to wait for the answer
}

var shardSeed = maphash.MakeSeed()

// lock returns the part that has the key, locked.
func (f *flights) lock(key wire.Key) *flightShard {
	s := &f.shards[maphash.Bytes(shardSeed, key)%uint64(len(f.shards))]
	s.mu.Lock()
	s.all = f
	return s
}

// privateKey is an answer for a class of queries.
type privateKey struct {
	key   string
	class class
}

const (
	// privateTime is how long queries whose response was for one of them only are
	// not held back for another, which would end in all of them asking at once.
	privateTime = 10 * time.Second
	// maxPrivate bounds how many such answers a shard remembers.
	maxPrivate = 64
)

// flight is an answer that is being asked for: the attempts to get it, and those
// who wait for it. A flight that is over has no more use for its attempts.
type flight struct {
	of      *flightShard
	key     string
	over    bool
	outcome *outcome      // what everybody gets; nil: everybody asks alone
	event   chan struct{} // closed when an attempt has ended; nil: nobody waits for that
	asking  int           // attempts under way
	waiting int
	looked  int // how many who were about to wait had a closer look taken at them

	// Most flights have one class and one attempt, which need no memory of their own.
	class   classState
	others  []*classState
	attempt attempt
}

// classState is what is known of a class of queries in a flight.
type classState struct {
	class   class
	began   time.Time // the last attempt; zero: none yet
	waiting int
	failure *outcome // of the last attempt to fail without a response
	order   uint64   // of that attempt
}

// attempt is one query upstream for the answer. settle must be called at least
// once; later calls are ignored.
type attempt struct {
	flight  *flight
	state   *classState
	order   uint64
	settled bool
	outcome *outcome // once it is settled, if somebody waits for it
	sharers int      // how many of its class have waited since before it
}

// waiter is a query that waits for an answer.
type waiter struct {
	flight  *flight
	state   *classState
	since   time.Time
	order   uint64
	attempt *attempt // on its behalf, if there was one
}

// lead begins to ask for an answer, or returns nil if it is asked for already.
func (f *flights) lead(key wire.Key, c class) *attempt {
	s := f.lock(key)
	defer s.mu.Unlock()
	if s.byKey[string(key)] != nil {
		return nil
	}
	return s.open(key, c).begin(c)
}

// join begins to ask for an answer, or waits for it if it is asked for already.
// It returns neither if too many wait, or that would be of no use. Waiters must call
// wait or leave.
func (f *flights) join(key wire.Key, c class) (*attempt, *waiter) {
	s := f.lock(key)
	defer s.mu.Unlock()
	fl := s.byKey[string(key)]
	switch {
	case s.isPrivate(key, c):
		return nil, nil
	case fl == nil:
		return s.open(key, c).begin(c), nil
	case f.waiters.Add(1) > maxWaiters:
		f.waiters.Add(-1)
		return nil, nil
	}
	w := &waiter{flight: fl, state: fl.state(c), since: time.Now(), order: f.order.Add(1)}
	fl.waiting++
	w.state.waiting++
	return nil, w
}

func (s *flightShard) isPrivate(key wire.Key, c class) bool {
	if len(s.private) == 0 {
		return false
	}
	k := privateKey{string(key), c}
	until, ok := s.private[k]
	if ok && time.Now().After(until) {
		delete(s.private, k)
		return false
	}
	return ok
}

func (s *flightShard) notePrivate(k privateKey) {
	if s.private == nil || len(s.private) >= maxPrivate {
		s.private = make(map[privateKey]time.Time)
	}
	s.private[k] = time.Now().Add(privateTime)
}

func (s *flightShard) open(key wire.Key, c class) *flight {
	if s.byKey == nil {
		s.byKey = make(map[string]*flight)
	}
	fl := &flight{of: s, key: string(key), class: classState{class: c}}
	s.byKey[fl.key] = fl
	return fl
}

func (fl *flight) state(c class) *classState {
	if fl.class.class == c {
		return &fl.class
	}
	for _, s := range fl.others {
		if s.class == c {
			return s
		}
	}
	s := &classState{class: c}
	fl.others = append(fl.others, s)
	return s
}

func (fl *flight) begin(c class) *attempt {
	fl.asking++
	s := fl.state(c)
	s.began = time.Now()
	a := &fl.attempt
	if a.flight != nil {
		a = new(attempt)
	}
	*a = attempt{flight: fl, state: s, order: fl.of.all.order.Add(1), sharers: s.waiting}
	return a
}

// closeLook reports whether a closer look is to be taken at the waiter: at the
// first few of a flight, since what comes of a query itself comes first.
func (w *waiter) closeLook() bool {
	const first = 4
	w.flight.of.mu.Lock()
	defer w.flight.of.mu.Unlock()
	w.flight.looked++
	return w.flight.looked <= first
}

// leave ends the wait.
func (w *waiter) leave() {
	w.flight.of.mu.Lock()
	defer w.flight.of.mu.Unlock()
	w.flight.of.all.waiters.Add(-1)
	w.flight.waiting--
	w.state.waiting--
	w.flight.forgetUnused()
}

// wait returns what came of asking, or nil if the caller had better ask alone. It
// calls askAnew, which must not block, with an attempt to be made for all who wait.
func (w *waiter) wait(ctx context.Context, askAnew func(*attempt)) (*outcome, error) {
	s := w.flight.of
	timer := time.NewTimer(maxPatience)
	defer timer.Stop()
	defer w.leave()
	for {
		s.mu.Lock()
		out, over := w.outcome()
		due := w.due()
		var a *attempt
		if !over && due <= 0 {
			a = w.flight.begin(w.state.class)
			w.attempt = a
		}
		if w.flight.event == nil {
			w.flight.event = make(chan struct{})
		}
		event := w.flight.event
		s.mu.Unlock()
		switch {
		case over:
			return out, nil
		case a != nil:
			askAnew(a)
			continue
		}
		timer.Reset(due)
		select {
		case <-event:
		case <-timer.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// outcome returns what came of asking, nil if the query is to be asked alone,
// once it is over.
func (w *waiter) outcome() (out *outcome, over bool) {
	fl, s := w.flight, w.state
	switch a := w.attempt; {
	case fl.over && fl.outcome != nil:
		out := *fl.outcome
		out.private = nil
		return &out, true
	case a != nil && a.settled:
		// Made for this query, it is its own whatever it is.
		if a.outcome.partial {
			return nil, true
		}
		return a.outcome, true
	case fl.over && a == nil:
		return nil, true
	case s.order > w.order:
		out := *s.failure
		out.err = nil // for whom it was asked reports it
		return &out, true
	}
	return nil, false
}

// due is how long to wait until the answer is asked for anew on behalf of this
// query.
func (w *waiter) due() time.Duration {
	fl, s := w.flight, w.state
	switch {
	case w.attempt != nil:
		return forever
	case fl.asking == 0:
		return 0
	case fl.asking >= maxAsking:
		return forever // until one of them has ended
	}
	// A client that repeats its query has waited before.
	since := s.began
	if since.IsZero() {
		since = w.since
	}
	return fl.of.all.responses.patience() - time.Since(since)
}

// forever is longer than any query takes.
const forever = time.Hour

// settle tells those who wait what came of the attempt.
func (a *attempt) settle(what outcome) {
	fl := a.flight
	s := fl.of
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.settled {
		return
	}
	a.settled = true
	fl.asking--
	var out *outcome
	if fl.waiting > 0 {
		out = new(outcome)
		*out = what
	}
	a.outcome = out
	switch {
	case fl.over:
	case what.shared:
		fl.end(out)
	case !what.failed:
		if what.answered && fl.waiting > 0 {
			s.notePrivate(privateKey{fl.key, a.state.class})
		}
		fl.end(nil)
	case !what.partial && a.order > a.state.order:
		a.state.failure, a.state.order = out, a.order
	}
	if fl.event != nil {
		close(fl.event)
		fl.event = nil
	}
	fl.forgetUnused()
}

// gone is the outcome of attempts that nobody can learn from: the client left, or
// a plugin panicked.
var gone = outcome{failed: true, partial: true}

// end ends the flight, so that who comes next looks into the cache first.
func (fl *flight) end(out *outcome) {
	fl.over, fl.outcome = true, out
	fl.forget()
}

func (fl *flight) forgetUnused() {
	if fl.asking == 0 && fl.waiting == 0 {
		fl.forget()
	}
}

func (fl *flight) forget() {
	if fl.of.byKey[fl.key] == fl {
		delete(fl.of.byKey, fl.key)
	}
}

// abandon has the answers that are being asked for asked for anew by who comes
// next.
func (f *flights) abandon() {
	for i := range f.shards {
		s := &f.shards[i]
		s.mu.Lock()
		s.byKey = nil
		s.mu.Unlock()
	}
}

// semaphore bounds what is under way.
type semaphore chan struct{}

func newSemaphore(n int) semaphore { return make(semaphore, n) }

func (s semaphore) tryAcquire() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s semaphore) release() { <-s }
