// Package fairness divides the queries that wait for an upstream (misses) among their
// sources, so that one client that asks without end delays itself and nobody else.
//
// At most a number of misses is under way. A source alone may have all of them but an
// eighth, which is for the next source that comes. Where there is no room, a miss waits, and
// the sources take turns. A source below its share, the limit divided by the sources that
// are active, goes first, and if all is taken, the source that has most gives way: its
// oldest query under way ends. If too many queries of a source wait, its oldest one is
// answered SERVFAIL: its client has most likely given up on it.
//
// Every step takes the same time however many sources and queries there are. Queries that
// the cache answers do not come here.
package fairness

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"
)

const (
	// reservePart is the part of the limit that a source beyond its share leaves free for
	// others, and leastReserve what it leaves of a small one.
	reservePart  = 8
	leastReserve = 8

	// leastShare is the share where sources are very many, and pacedShare the least one where
	// goroutines run late, if the limit allows it: when all clients ask for what is not cached,
	// as after a cold start, to hold up the misses of all would only make them more.
	leastShare = 4
	pacedShare = 16

	// mostWaiting is how many queries of a source may wait for a place, and leastWaiting
	// how many may where sources are very many, when one comes that is not in turn. At 2,000
	// queries a second the last of 256 waits for 128 ms.
	mostWaiting  = 256
	leastWaiting = 4

	// maxSources bounds the sources that are told apart: addresses can be forged. Those
	// beyond share one place.
	maxSources = 4096

	// sourcesAtOnce is how many sources a query may look at, on average.
	sourcesAtOnce = 64

	// patience bounds how long a query waits for a place. Clients do not wait longer.
	patience = 5 * time.Second
)

// others stands for the sources beyond maxSources.
var others = netip.IPv6Unspecified()

// Misses divides the misses of this process. It is safe for concurrent use.
type Misses struct {
	// OnShed, if set, is called for each query that gave way since its source has more than
	// its share, with the source. It runs under a lock and must not wait.
	OnShed func(source netip.Addr)

	mu      sync.Mutex
	limit   int // of the misses under way
	pace    int // the limit for sources beyond their share while goroutines run late; 0: none
	paced   time.Time
	under   int
	waiting int
	shed    uint64
	sources map[netip.Addr]*source
	light   ring // sources below their share that have waiting queries
	heavy   ring // other sources that have waiting queries
	later   ring // sources with many turns that have had theirs until Pace is called again
	turns   int  // that are left until then
	most    *source

	fewer    bool // most has fewer than before
	notFound int  // calls of findMost that did nothing
}

// New returns Misses of which limit may be under way.
func New(limit int) *Misses {
	return &Misses{limit: max(limit, 2), sources: map[netip.Addr]*source{}}
}

// A Shed is the error of a query that gave way.
type Shed struct{ Source netip.Addr }

// Error implements error.
func (e *Shed) Error() string {
	return "client " + e.Source.String() + " has more queries waiting for an upstream than its share: it asks for very many names that are not cached, or the upstream is slow or does not answer"
}

// NotBegun is the error of a query whose context was cancelled while it waited.
type NotBegun struct{ err error }

// Error implements error.
func (e *NotBegun) Error() string {
	return "the query ended while it waited for a place among the queries under way: " + e.err.Error()
}

// Unwrap returns the error of the context.
func (e *NotBegun) Unwrap() error { return e.err }

// miss is a query of a source. It waits, is under way, or is over.
type miss struct {
	source *source
	links  [2]*miss // in the queue of its source: before and after
	inTurn bool
	turn   chan struct{} // closed when the wait is over
	cancel context.CancelFunc
	state  state
	begun  bool // its turn has come; not changed once turn is closed
	shed   bool // it had to give way
}

type state uint8

const (
	waiting state = iota
	underWay
	over
)

// placeKey marks the context of a query that has a place.
type placeKey struct{}

// Do calls f when the source has a place, with a context that ends if the query has to give
// way. It returns a [*Shed] if the query had to and was not answered, or got no place before
// the deadline, and a [*NotBegun] if the context was cancelled before f was called.
//
// With inTurn, the client asks its next query there only when this one is answered, as over
// a TCP connection. The number of these is bounded by that of the connections.
//
// A query that f causes, and that has its context, needs no place of its own: if all places
// were of queries that cause others, these would wait for one another.
func (m *Misses) Do(ctx context.Context, from netip.Addr, inTurn bool, f func(context.Context) (rcode int, err error)) (rcode int, err error) {
	if ctx.Value(placeKey{}) != nil {
		return f(ctx)
	}
	inner, cancel := context.WithCancel(context.WithValue(ctx, placeKey{}, true))
	defer cancel()
	q := &miss{cancel: cancel, inTurn: inTurn}
	if err := m.enter(ctx, q, from); err != nil {
		return 0, err
	}
	defer m.leave(q) // also if f panics
	rcode, err = f(inner)
	if err != nil && m.leave(q) {
		err = &Shed{from}
	}
	return rcode, err
}

// enter waits for a place.
func (m *Misses) enter(ctx context.Context, q *miss, from netip.Addr) error {
	m.mu.Lock()
	s := m.source(from)
	q.source = s
	if s.waits() == 0 && m.hasRoom(s) {
		m.start(q)
		m.mu.Unlock()
		return nil
	}
	q.turn = make(chan struct{})
	m.wait(q)
	m.mu.Unlock()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-q.turn:
		if q.begun {
			return nil
		}
	case <-ctx.Done():
	case <-timer.C:
	}
	err := ctx.Err()
	cancelled := err != nil && !errors.Is(err, context.DeadlineExceeded)
	if gaveWay := m.withdraw(q, !cancelled); cancelled && !gaveWay {
		return &NotBegun{err}
	}
	return &Shed{from}
}

// withdraw ends a query that need not begin any more. If it has waited for too long, it gives
// way. It reports whether it had to.
func (m *Misses) withdraw(q *miss, tooLong bool) (gaveWay bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if tooLong && !q.shed {
		m.countShed(q.source, !m.isLight(q.source))
	}
	if q.state == waiting {
		m.forget(q)
	}
	m.end(q) // its turn has come meanwhile
	return q.shed
}

// leave ends a query under way. It reports whether the query had to give way.
func (m *Misses) leave(q *miss) (gaveWay bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.end(q)
	return q.shed
}

// SetLimit sets how many misses may be under way. Those that are, stay.
func (m *Misses) SetLimit(limit int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.limit = max(limit, 2)
	m.dispatch()
}

// Figures are what the metrics say.
type Figures struct {
	UnderWay, Waiting, Sources int
	Limit                      int    // for sources beyond their share
	Shed                       uint64 // queries that gave way so far
}

// Figures returns the present figures.
func (m *Misses) Figures() Figures {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Figures{m.under, m.waiting, len(m.sources), m.bound(), m.shed}
}

// UnderWay returns how many misses are under way.
func (m *Misses) UnderWay() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.under
}

// The lock is held from here on.

// bound is the limit for sources beyond their share, before the reserve.
func (m *Misses) bound() int {
	if m.pace > 0 {
		return min(m.pace, m.limit)
	}
	return m.limit
}

// share is what each active source may have under way, whatever the others have.
func (m *Misses) share() int {
	sources := max(len(m.sources), 1)
	return max(leastShare, m.bound()/sources, min(pacedShare, m.limit/sources))
}

// hasSpare reports whether a source beyond its share may start a miss.
func (m *Misses) hasSpare() bool {
	bound := m.bound()
	return m.under < bound-max(bound/reservePart, min(leastReserve, bound/2))
}

func (m *Misses) hasRoom(s *source) bool {
	return m.hasSpare() || m.isLight(s) && m.under < m.limit
}

// isLight reports whether a source is below its share. A source alone leaves the reserve.
func (m *Misses) isLight(s *source) bool {
	return s.underWay() < m.share() && len(m.sources) > 1
}

func (m *Misses) source(at netip.Addr) *source {
	s := m.sources[at]
	if s == nil && len(m.sources) >= maxSources {
		at = others
		s = m.sources[at]
	}
	if s == nil {
		s = &source{at: at}
		m.sources[at] = s
	}
	return s
}

func (m *Misses) start(q *miss) {
	s := q.source
	q.state, q.begun = underWay, true
	s.under.push(q)
	m.under++
	if m.most == nil || s.under.len > m.most.under.len {
		m.most = s
	}
}

// wait queues a query. The oldest one of its source gives way if too many wait.
func (m *Misses) wait(q *miss) {
	s := q.source
	s.queueOf(q).push(q)
	m.waiting++
	if !q.inTurn && s.waiting.len > min(mostWaiting, max(leastWaiting, m.limit/len(m.sources))) {
		oldest := s.waiting.first
		m.forget(oldest)
		m.giveWay(oldest)
		close(oldest.turn)
	}
	m.place(s)
	if s.in == &m.light && m.under >= m.limit {
		m.makeRoom()
	}
	m.dispatch()
}

// makeRoom ends the oldest query of the source that has most under way. Its place is free
// when the plugins below have noticed.
func (m *Misses) makeRoom() {
	m.findMost()
	if m.most == nil || m.isLight(m.most) || m.most.under.len == 0 {
		return
	}
	q := m.most.under.first
	m.most.under.remove(q)
	m.most.leaving++
	m.fewer = true
	m.giveWay(q)
	q.cancel()
}

// findMost finds the source that has most under way, if the one that had most has fewer now.
// Where sources are many, it does so rarely.
func (m *Misses) findMost() {
	if !m.fewer {
		return
	}
	if m.notFound++; m.notFound*sourcesAtOnce < len(m.sources) {
		return
	}
	m.notFound, m.fewer = 0, false
	for _, s := range m.sources {
		if m.most == nil || s.under.len > m.most.under.len {
			m.most = s
		}
	}
}

func (m *Misses) giveWay(q *miss) {
	q.shed = true
	m.countShed(q.source, true)
}

// countShed counts a query that is not answered, and whether its source has more than its
// share.
func (m *Misses) countShed(s *source, beyond bool) {
	m.shed++
	if beyond && m.OnShed != nil {
		m.OnShed(s.at)
	}
}

// forget removes a query that waits.
func (m *Misses) forget(q *miss) {
	q.state = over
	q.source.queueOf(q).remove(q)
	m.waiting--
	m.left(q.source)
}

// end removes a query that is under way.
func (m *Misses) end(q *miss) {
	if q.state != underWay {
		return
	}
	q.state = over
	if q.shed {
		q.source.leaving--
	} else {
		q.source.under.remove(q)
		m.fewer = m.fewer || q.source == m.most
	}
	m.under--
	m.left(q.source)
	m.dispatch()
}

// left is called when a source has a query less.
func (m *Misses) left(s *source) {
	m.place(s)
	if s.underWay()+s.waits() > 0 {
		return
	}
	delete(m.sources, s.at)
	if m.most == s {
		m.most = nil
	}
}

// place puts a source into the ring where it belongs.
func (m *Misses) place(s *source) {
	var to *ring
	switch {
	case s.waits() == 0:
	case m.next(s) == nil:
		to = &m.later
	case m.isLight(s):
		to = &m.light
	default:
		to = &m.heavy
	}
	if s.in == to {
		return
	}
	if s.in != nil {
		s.in.remove(s)
	}
	if to != nil {
		to.push(s)
	}
}

// dispatch starts queries that wait, while there is room.
func (m *Misses) dispatch() {
	for {
		s := m.light.first
		switch {
		case s != nil && !m.isLight(s):
			m.place(s) // the share has become smaller since
			continue
		case s != nil && m.under < m.limit:
		case m.heavy.first != nil && m.hasSpare():
			s = m.heavy.first
		default:
			return
		}
		q := m.next(s)
		if q == nil {
			m.place(s)
			continue
		}
		turn := q.inTurn && m.hasManyTurns(s)
		s.queueOf(q).remove(q)
		s.turnLast = q.inTurn
		m.waiting--
		m.start(q)
		s.in.remove(s) // its next turn is behind the others
		m.place(s)
		if turn {
			m.turns-- // after place: the last turn must not put it before those that had none
		}
		close(q.turn)
	}
}
