package fairness

import "time"

const (
	// leastPace is the lowest pace. It is halved once in each slowTime while goroutines run
	// late, and grows by 1/paceStep in each paceTime when they do not.
	leastPace = 16
	slowTime  = 20 * time.Millisecond
	paceStep  = 32
	paceTime  = 100 * time.Millisecond

	// A source has many turns if so many of its queries in turn wait, each at a connection of its
	// own. These need not end to make room, so nothing but a rate keeps it from using the
	// processor alone: from call to call of Pace all sources with many turns together
	// start 1/turnsPart of the pace. At the lowest one that is 800 a second if the calls come
	// every 5 ms, and fewer if they are late themselves.
	manyTurns = 16
	turnsPart = 4
)

// Pace is called every few milliseconds while many queries are under way, with whether
// goroutines ran late just now. Sources beyond their share start fewer misses then, until
// goroutines run in time.
func (m *Misses) Pace(now time.Time, late bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.nextTurns()
	since := now.Sub(m.paced)
	switch {
	case late && since >= slowTime:
		m.pace = max(leastPace, min(m.bound(), m.under)/2)
	case !late && m.pace > 0 && since >= paceTime:
		m.pace += max(1, m.pace/paceStep)
		if m.pace >= m.limit {
			m.pace = 0
		}
	default:
		return
	}
	m.paced = now
}

// EndPace ends that sources start fewer misses.
func (m *Misses) EndPace() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pace = 0
	m.nextTurns()
}

// The lock is held from here on.

// nextTurns lets sources with many turns go on.
func (m *Misses) nextTurns() {
	m.turns = m.pace / turnsPart
	for m.later.first != nil && m.next(m.later.first) != nil {
		m.place(m.later.first)
	}
	m.dispatch()
}

// hasManyTurns reports whether a rate bounds what a source starts of its queries in turn.
func (m *Misses) hasManyTurns(s *source) bool { return m.pace > 0 && s.inTurn.len >= manyTurns }

// next returns the query of a source that waits and begins next, nil if all must wait until Pace
// is called again. Those in turn do not hold up the others: clients that share an address, as in
// the host's network, are one source.
func (m *Misses) next(s *source) *miss {
	inTurn := s.inTurn.first
	if m.turns <= 0 && m.hasManyTurns(s) {
		inTurn = nil
	}
	if s.waiting.first == nil || inTurn != nil && !s.turnLast {
		return inTurn
	}
	return s.waiting.first
}
