// Package flight lets queries for the same answer share one query upstream. The first
// query asks, and the others wait for its response.
//
// Sharing must cost no client anything:
//
//   - Only a response that is stored for everybody is shared. After any other
//     response, each query that waited asks for itself.
//   - The response is shared before it is written to the client that asked first:
//     that client may never read.
//   - A lost packet must not stop the others. A query that has waited for some time
//     starts another attempt, for all that wait. Each query does so once at most.
//   - A failure without a response is shared only with queries that were waiting when
//     the attempt began, and that ask in the same way.
//   - A query that a query under way has caused does not wait for it.
package flight

import (
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

const (
	// maxWaiters is how many queries may wait at a time. Queries beyond it go upstream
	// themselves, so that waiting takes a bounded amount of memory.
	maxWaiters = 16384
	// maxAsking is how many attempts for one answer may be under way at a time. If so
	// many get no response, one more gets none either.
	maxAsking = 4
)

// Outcome is the result of a query upstream, for the queries that waited for it.
type Outcome struct {
	// Shared: the response is stored for everybody, so every waiter gets it.
	Shared bool
	// Failed: the upstream was not reached, so there is no response.
	Failed bool
	// Back: the attempt failed, but the upstream has responded to others since.
	Back bool
	// Partial: the response has more than the Outcome holds.
	Partial bool
	// Private is the response of an attempt in the background. Unless the response is
	// shared, only the query that started the attempt gets it.
	Private *dns.Msg
	// Answered: there is a response. Otherwise only Code and Err are set.
	Answered  bool
	Answer    wire.Answer
	TTL       uint32
	Wildcard  string
	Refreshed bool // the response replaces a stale answer

	Code int
	Err  error
}

// Class is the way a query asks. The upstream may treat queries of different classes
// differently.
type Class struct {
	EDNS, TCP bool
	Options   uint64 // a hash of the EDNS options; 0: none
}

// Table holds the flights, by key. The zero value is ready once Patience is set. It is
// divided into shards, so that queries for many names do not queue for one lock.
type Table struct {
	// Patience returns how long a query waits for the response to another query
	// before it starts an attempt of its own.
	Patience func() time.Duration

	shards  [64]shard
	waiters atomic.Int64
	order   atomic.Uint64 // the last number that an attempt or waiter got
}

// shard holds a part of the flights.
type shard struct {
	mu      sync.Mutex
	all     *Table
	byKey   map[string]*flight
	private map[privateKey]time.Time // until when a query for the answer does not wait
}

var shardSeed = maphash.MakeSeed()

// lock returns the shard of the key, locked.
func (t *Table) lock(key wire.Key) *shard {
	s := &t.shards[maphash.Bytes(shardSeed, key)%uint64(len(t.shards))]
	s.mu.Lock()
	s.all = t
	return s
}

// privateKey names an answer that each query of a class must ask for itself.
type privateKey struct {
	key   string
	class Class
}

const (
	// privateTime is how long queries for an answer do not wait for one another after
	// a response that was for one client only. If they waited, they would all ask at
	// once when it comes.
	privateTime = 10 * time.Second
	// maxPrivate bounds how many such answers a shard remembers.
	maxPrivate = 64
)

// flight is an answer that is being asked for: the attempts to get it, and the queries
// that wait for it. Attempts that end after the flight change nothing.
type flight struct {
	of      *shard
	key     string
	over    bool
	outcome *Outcome      // for all waiters; nil: each asks alone
	event   chan struct{} // closed when an attempt ends; nil: no query waits
	asking  int           // attempts under way
	waiting int
	checked int // how many waiters have called AmongFirst

	// Most flights have one class and one attempt. These are part of the flight, so that
	// it takes one allocation.
	class   classState
	others  []*classState
	attempt Attempt
}

// classState is the state of one class of queries in a flight.
type classState struct {
	class   Class
	began   time.Time // when the last attempt began; zero: none yet
	waiting int
	failure *Outcome // of the last attempt that failed without a response
	order   uint64   // of that attempt
}

// Attempt is one query upstream for the answer. Settle must be called at least
// once; later calls are ignored.
type Attempt struct {
	flight  *flight
	state   *classState
	order   uint64
	settled bool
	outcome *Outcome // set when it is settled, if a query waits for it

	// Sharers is how many queries of its class were waiting when it began.
	Sharers int
}

// Waiter is a query that waits for an answer.
type Waiter struct {
	flight  *flight
	state   *classState
	since   time.Time
	order   uint64
	attempt *Attempt // that it has started, if any
}

// Lead begins an attempt, or returns nil if the answer is being asked for already.
func (t *Table) Lead(key wire.Key, c Class) *Attempt {
	s := t.lock(key)
	defer s.mu.Unlock()
	if s.byKey[string(key)] != nil {
		return nil
	}
	return s.open(key, c).begin(c)
}

// Join begins an attempt, or returns a waiter if the answer is being asked for already.
// It returns neither if too many queries wait, or if waiting would be of no use. Wait
// or Leave must be called on the waiter.
func (t *Table) Join(key wire.Key, c Class) (*Attempt, *Waiter) {
	s := t.lock(key)
	defer s.mu.Unlock()
	fl := s.byKey[string(key)]
	switch {
	case s.isPrivate(key, c):
		return nil, nil
	case fl == nil:
		return s.open(key, c).begin(c), nil
	case t.waiters.Add(1) > maxWaiters:
		t.waiters.Add(-1)
		return nil, nil
	}
	w := &Waiter{flight: fl, state: fl.state(c), since: time.Now(), order: t.order.Add(1)}
	fl.waiting++
	w.state.waiting++
	return nil, w
}

func (s *shard) isPrivate(key wire.Key, c Class) bool {
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

func (s *shard) notePrivate(k privateKey) {
	if s.private == nil || len(s.private) >= maxPrivate {
		s.private = make(map[privateKey]time.Time)
	}
	s.private[k] = time.Now().Add(privateTime)
}

func (s *shard) open(key wire.Key, c Class) *flight {
	if s.byKey == nil {
		s.byKey = make(map[string]*flight)
	}
	fl := &flight{of: s, key: string(key), class: classState{class: c}}
	s.byKey[fl.key] = fl
	return fl
}

func (fl *flight) state(c Class) *classState {
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

func (fl *flight) begin(c Class) *Attempt {
	fl.asking++
	s := fl.state(c)
	s.began = time.Now()
	a := &fl.attempt
	if a.flight != nil {
		a = new(Attempt)
	}
	*a = Attempt{flight: fl, state: s, order: fl.of.all.order.Add(1), Sharers: s.waiting}
	return a
}

// AmongFirst reports whether the waiter is one of the first few of its flight to call
// it. A query that the query under way has caused is among these.
func (w *Waiter) AmongFirst() bool {
	const first = 4
	w.flight.of.mu.Lock()
	defer w.flight.of.mu.Unlock()
	w.flight.checked++
	return w.flight.checked <= first
}

// Leave ends the wait.
func (w *Waiter) Leave() {
	w.flight.of.mu.Lock()
	defer w.flight.of.mu.Unlock()
	w.flight.of.all.waiters.Add(-1)
	w.flight.waiting--
	w.state.waiting--
	w.flight.forgetUnused()
}

// Wait returns the outcome, or nil if the caller should ask alone. If waiting takes too
// long, it calls askAnew with another attempt, for all that wait. askAnew must not
// block.
func (w *Waiter) Wait(ctx context.Context, askAnew func(*Attempt)) (*Outcome, error) {
	s := w.flight.of
	timer := time.NewTimer(forever)
	defer timer.Stop()
	defer w.Leave()
	for {
		s.mu.Lock()
		out, over := w.outcome()
		due := w.due()
		var a *Attempt
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

// outcome reports whether the wait is over, and returns the outcome: nil if the query
// should ask alone.
func (w *Waiter) outcome() (out *Outcome, over bool) {
	fl, s := w.flight, w.state
	switch a := w.attempt; {
	case fl.over && fl.outcome != nil:
		out := *fl.outcome
		out.Private = nil
		return &out, true
	case a != nil && a.settled:
		// This query has started the attempt, and takes any outcome of it.
		if a.outcome.Partial {
			return nil, true
		}
		return a.outcome, true
	case fl.over && a == nil:
		return nil, true
	case s.order > w.order:
		out := *s.failure
		out.Err = nil // the query that asked reports it
		return &out, true
	}
	return nil, false
}

// due is how long to wait until this query starts another attempt.
func (w *Waiter) due() time.Duration {
	fl, s := w.flight, w.state
	switch {
	case w.attempt != nil:
		return forever
	case fl.asking == 0:
		return 0
	case fl.asking >= maxAsking:
		return forever // until one of them has ended
	}
	// The time counts from the attempt, since a client that repeats its query has
	// waited before.
	since := s.began
	if since.IsZero() {
		since = w.since
	}
	return fl.of.all.Patience() - time.Since(since)
}

// forever is longer than any query takes. An event ends such a wait.
const forever = time.Hour

// Settle gives the outcome of the attempt to the queries that wait.
func (a *Attempt) Settle(what Outcome) {
	fl := a.flight
	s := fl.of
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.settled {
		return
	}
	a.settled = true
	fl.asking--
	var out *Outcome
	if fl.waiting > 0 {
		out = new(Outcome)
		*out = what
	}
	a.outcome = out
	switch {
	case fl.over:
	case what.Shared:
		fl.end(out)
	case !what.Failed:
		if what.Answered && fl.waiting > 0 {
			s.notePrivate(privateKey{fl.key, a.state.class})
		}
		fl.end(nil)
	case !what.Partial && a.order > a.state.order:
		a.state.failure, a.state.order = out, a.order
	}
	if fl.event != nil {
		close(fl.event)
		fl.event = nil
	}
	fl.forgetUnused()
}

// end ends the flight. The next query looks in the cache first.
func (fl *flight) end(out *Outcome) {
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

// Abandon makes the next query for each answer ask again, as if nothing were under
// way. It returns how many answers are being asked for, and how many queries wait.
func (t *Table) Abandon() (answers, waiting int) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		answers += len(s.byKey)
		s.byKey = nil
		s.mu.Unlock()
	}
	return answers, int(t.waiters.Load())
}
