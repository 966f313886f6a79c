package fairness

import "net/netip"

// source is a client that has queries here.
type source struct {
	at             netip.Addr
	waiting, under queue
	inTurn         queue // queries that wait, each at a connection of its own
	turnLast       bool  // the last one that began was of these
	leaving        int   // queries under way that have given way

	in    *ring      // in which it waits for its turn; nil: no query of it waits
	links [2]*source // in the ring: before and after
}

// underWay returns how many places the source has.
func (s *source) underWay() int { return s.under.len + s.leaving }

// waits returns how many queries of the source wait.
func (s *source) waits() int { return s.waiting.len + s.inTurn.len }

// queueOf returns where a query of the source waits.
func (s *source) queueOf(q *miss) *queue {
	if q.inTurn {
		return &s.inTurn
	}
	return &s.waiting
}

// queue has queries of a source, the oldest one first.
type queue struct {
	first, last *miss
	len         int
}

func (l *queue) push(q *miss) {
	q.links = [2]*miss{l.last, nil}
	if l.last != nil {
		l.last.links[1] = q
	} else {
		l.first = q
	}
	l.last = q
	l.len++
}

func (l *queue) remove(q *miss) {
	before, after := q.links[0], q.links[1]
	if before != nil {
		before.links[1] = after
	} else {
		l.first = after
	}
	if after != nil {
		after.links[0] = before
	} else {
		l.last = before
	}
	q.links = [2]*miss{}
	l.len--
}

// ring has sources in the order of their turns.
type ring struct{ first, last *source }

func (r *ring) push(s *source) {
	s.in, s.links = r, [2]*source{r.last, nil}
	if r.last != nil {
		r.last.links[1] = s
	} else {
		r.first = s
	}
	r.last = s
}

func (r *ring) remove(s *source) {
	before, after := s.links[0], s.links[1]
	if before != nil {
		before.links[1] = after
	} else {
		r.first = after
	}
	if after != nil {
		after.links[0] = before
	} else {
		r.last = before
	}
	s.in, s.links = nil, [2]*source{}
}
