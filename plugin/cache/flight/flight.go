// Package flight has queries for one answer share the query upstream that asks for
// it: who asks for whom, and who waits for whom.
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
)

// Outcome is what came of a query upstream, for those who waited for it.
type Outcome struct {
	// Shared: everybody may have the response, which is stored for everybody.
	Shared bool
	// Failed: there was no response, since the upstream was not reached; and Back:
	// it has responded to others since.
	Failed, Back bool
	// Partial: there was more to the response than is here.
	Partial bool
	// Private is the response of an attempt in the background to the query on
	// whose behalf it was, which alone may have it if it is not shared.
	Private *dns.Msg
	// Answered: there is a response; otherwise Code and Err are all.
	Answered  bool
	Answer    wire.Answer
	TTL       uint32
	Wildcard  string
	Refreshed bool // the response replaces a stale answer

	Code int
	Err  error
}

// Class is how a query asks for its answer. The upstream may treat queries of
// different classes differently.
type Class struct {
	EDNS, TCP bool
	Options   uint64 // a hash of the EDNS options; 0: none
}

// Table has the answers that are being asked for, by key. With Patience set the zero
// value is ready. Many cold names at a time must not queue for one lock.
type Table struct {
	// Patience returns how long a query waits for the response to another before it
	// is asked anew.
	Patience func() time.Duration

	shards  [64]shard
	waiters atomic.Int64
	order   atomic.Uint64 // of attempts and waiters, as they come
}

// shard has a part of the keys.
type shard struct {
	mu      sync.Mutex
	all     *Table
	byKey   map[string]*flight
	private map[privateKey]time.Time // until when it is of no use to wait for the answer
}

var shardSeed = maphash.MakeSeed()

// lock returns the part that has the key, locked.
func (t *Table) lock(key wire.Key) *shard {
	s := &t.shards[maphash.Bytes(shardSeed, key)%uint64(len(t.shards))]
	s.mu.Lock()
	s.all = t
	return s
}

// privateKey is an answer for a class of queries.
type privateKey struct {
	key   string
	class Class
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
	of      *shard
	key     string
	over    bool
	outcome *Outcome      // what everybody gets; nil: everybody asks alone
	event   chan struct{} // closed when an attempt has ended; nil: nobody waits for that
	asking  int           // attempts under way
	waiting int
	checked int // how many waiters have called AmongFirst

	// Most flights have one class and one attempt, which need no memory of their own.
	class   classState
	others  []*classState
	attempt Attempt
}

// classState is what is known of a class of queries in a flight.
type classState struct {
	class   Class
	began   time.Time // the last attempt; zero: none yet
	waiting int
	failure *Outcome // of the last attempt to fail without a response
	order   uint64   // of that attempt
}

// Attempt is one query upstream for the answer. Settle must be called at least
// once; later calls are ignored.
type Attempt struct {
	flight  *flight
	state   *classState
	order   uint64
	settled bool
	outcome *Outcome // once it is settled, if somebody waits for it

	// Sharers is how many of its class have waited since before it.
	Sharers int
}

// Waiter is a query that waits for an answer.
type Waiter struct {
	flight  *flight
	state   *classState
	since   time.Time
	order   uint64
	attempt *Attempt // on its behalf, if there was one
}

// Lead begins to ask for an answer, or returns nil if it is asked for already.
func (t *Table) Lead(key wire.Key, c Class) *Attempt {
	s := t.lock(key)
	defer s.mu.Unlock()
	if s.byKey[string(key)] != nil {
		return nil
	}
	return s.open(key, c).begin(c)
}

// Join begins to ask for an answer, or waits for it if it is asked for already.
// It returns neither if too many wait, or that would be of no use. Waiters must call
// Wait or leave.
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

// AmongFirst reports whether the waiter is one of the first few of the flight to call
// it. A query that comes of the query which it waits for is among them.
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

// Wait returns what came of asking, or nil if the caller had better ask alone. It
// calls askAnew, which must not block, with an attempt to be made for all who wait.
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

// outcome returns what came of asking, nil if the query is to be asked alone,
// once it is over.
func (w *Waiter) outcome() (out *Outcome, over bool) {
	fl, s := w.flight, w.state
	switch a := w.attempt; {
	case fl.over && fl.outcome != nil:
		out := *fl.outcome
		out.Private = nil
		return &out, true
	case a != nil && a.settled:
		// Made for this query, it is its own whatever it is.
		if a.outcome.Partial {
			return nil, true
		}
		return a.outcome, true
	case fl.over && a == nil:
		return nil, true
	case s.order > w.order:
		out := *s.failure
		out.Err = nil // for whom it was asked reports it
		return &out, true
	}
	return nil, false
}

// due is how long to wait until the answer is asked for anew on behalf of this
// query.
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
	// A client that repeats its query has waited before.
	since := s.began
	if since.IsZero() {
		since = w.since
	}
	return fl.of.all.Patience() - time.Since(since)
}

// forever is longer than any query takes.
const forever = time.Hour

// Settle tells those who wait what came of the attempt.
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

// end ends the flight, so that who comes next looks into the cache first.
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

// Abandon has the answers that are being asked for asked for anew by who comes
// next. It returns how many answers these are, and how many queries wait.
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
