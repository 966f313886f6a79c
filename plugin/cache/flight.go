package cache

import (
	"context"
	"sync"
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
	// maxRefreshes is how many refreshes may be under way at a time.
	maxRefreshes = 256

	// minPatience and maxPatience bound how long a query waits for the response
	// to another before one asks anew: a few times as long as the upstream
	// usually takes. Long enough for a resolver that has to ask others, and short
	// enough for clients that give up after a second.
	minPatience = 100 * time.Millisecond
	maxPatience = 200 * time.Millisecond
	// usualTimes is how many times its usual time the upstream may take.
	usualTimes = 4
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
// ready.
type flights struct {
	mu      sync.Mutex
	byKey   map[string]*flight
	waiters int
	order   uint64 // of attempts and waiters, as they come

	private map[privateKey]time.Time // until when it is of no use to wait for the answer

	usual time.Duration // time to a response, on average; 0: not known yet

	silent bool   // queries have failed since the last response
	heard  uint64 // order of the last response
	back   uint64 // order of the response that ended the last silence
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
	// maxPrivate bounds how many such answers are remembered.
	maxPrivate = 4096
)

// flight is an answer that is being asked for: the attempts to get it, and those
// who wait for it. A flight that is over has no more use for its attempts.
type flight struct {
	of      *flights
	key     string
	over    bool
	outcome *outcome      // what everybody gets; nil: everybody asks alone
	event   chan struct{} // closed when an attempt has ended
	asking  int           // attempts under way
	waiting int
	looked  int // how many who were about to wait had a closer look taken at them
	classes []*classState
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
	outcome *outcome // once it is settled
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
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byKey[string(key)] != nil {
		return nil
	}
	return f.open(key).begin(c)
}

// join begins to ask for an answer, or waits for it if it is asked for already.
// It returns neither if too many wait, or that would be of no use. Waiters must call
// wait or leave.
func (f *flights) join(key wire.Key, c class) (*attempt, *waiter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl := f.byKey[string(key)]
	switch {
	case f.isPrivate(key, c):
		return nil, nil
	case fl == nil:
		return f.open(key).begin(c), nil
	case f.waiters >= maxWaiters:
		return nil, nil
	}
	f.order++
	f.waiters++
	w := &waiter{flight: fl, state: fl.state(c), since: time.Now(), order: f.order}
	fl.waiting++
	w.state.waiting++
	return nil, w
}

func (f *flights) isPrivate(key wire.Key, c class) bool {
	if len(f.private) == 0 {
		return false
	}
	k := privateKey{string(key), c}
	until, ok := f.private[k]
	if ok && time.Now().After(until) {
		delete(f.private, k)
		return false
	}
	return ok
}

func (f *flights) notePrivate(k privateKey) {
	if f.private == nil || len(f.private) >= maxPrivate {
		f.private = make(map[privateKey]time.Time)
	}
	f.private[k] = time.Now().Add(privateTime)
}

func (f *flights) open(key wire.Key) *flight {
	if f.byKey == nil {
		f.byKey = make(map[string]*flight)
	}
	fl := &flight{of: f, key: string(key), event: make(chan struct{})}
	f.byKey[fl.key] = fl
	return fl
}

// patience is how long to wait before somebody asks anew.
func (f *flights) patience() time.Duration {
	if f.usual == 0 {
		return maxPatience
	}
	return min(max(usualTimes*f.usual, minPatience), maxPatience)
}

func (fl *flight) state(c class) *classState {
	for _, s := range fl.classes {
		if s.class == c {
			return s
		}
	}
	s := &classState{class: c}
	fl.classes = append(fl.classes, s)
	return s
}

func (fl *flight) begin(c class) *attempt {
	fl.of.order++
	fl.asking++
	s := fl.state(c)
	s.began = time.Now()
	return &attempt{flight: fl, state: s, order: fl.of.order, sharers: s.waiting}
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
	w.flight.of.waiters--
	w.flight.waiting--
	w.state.waiting--
	w.flight.forgetUnused()
}

// wait returns what came of asking, or nil if the caller had better ask alone. It
// calls askAnew, which must not block, with an attempt to be made for all who wait.
func (w *waiter) wait(ctx context.Context, askAnew func(*attempt)) (*outcome, error) {
	f := w.flight.of
	timer := time.NewTimer(maxPatience)
	defer timer.Stop()
	defer w.leave()
	for {
		f.mu.Lock()
		out, over := w.outcome()
		due := w.due()
		var a *attempt
		if !over && due <= 0 {
			a = w.flight.begin(w.state.class)
			w.attempt = a
		}
		event := w.flight.event
		f.mu.Unlock()
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
	case a != nil && a.outcome != nil:
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
	}
	// A client that repeats its query has waited before.
	since := s.began
	if since.IsZero() {
		since = w.since
	}
	return fl.of.patience() - time.Since(since)
}

// forever is longer than any query takes.
const forever = time.Hour

// settle tells those who wait what came of the attempt.
func (a *attempt) settle(out *outcome) {
	fl := a.flight
	f := fl.of
	f.mu.Lock()
	defer f.mu.Unlock()
	if a.outcome != nil {
		return
	}
	a.outcome = out
	fl.asking--
	switch {
	case fl.over:
	case out.shared:
		fl.end(out)
	case !out.failed:
		if out.answered && fl.waiting > 0 {
			f.notePrivate(privateKey{fl.key, a.state.class})
		}
		fl.end(nil)
	case out != gone && a.order > a.state.order:
		a.state.failure, a.state.order = out, a.order
	}
	close(fl.event)
	fl.event = make(chan struct{})
	fl.forgetUnused()
}

// gone is the outcome of attempts that nobody can learn from: the client left, or
// a plugin panicked.
var gone = &outcome{failed: true, partial: true}

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
	f.mu.Lock()
	defer f.mu.Unlock()
	f.byKey = nil
}

// sent is when a query was sent upstream.
type sent struct {
	order uint64
	at    time.Time
}

// sends notes that a query is sent upstream.
func (f *flights) sends() sent {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.order++
	return sent{f.order, time.Now()}
}

// hears notes that the upstream responded to a query.
func (f *flights) hears(q sent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	took := time.Since(q.at)
	if f.usual == 0 {
		f.usual = took
	} else {
		f.usual += (took - f.usual) / 8
	}
	f.order++
	f.heard = f.order
	if f.silent {
		f.silent = false
		f.back = f.order
	}
}

// misses notes that the upstream did not respond to a query, and reports whether a
// silence has ended since it was sent.
func (f *flights) misses(q sent) (back bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.heard < q.order {
		f.silent = true
	}
	return f.back > q.order
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
