package tablewalk

import "time"

const (
	// pollInterval is how often the number of entries is read. A walk reads all buckets,
	// also the empty ones: 262,144 take 12 ms.
	pollInterval = 10 * time.Second

	// The table is walked so seldom that walks take at most one part in walkShare of one
	// CPU, which a table of a million entries stretches to minutes; but at least every
	// maxWalkInterval, if that is needed.
	walkShare       = 100
	maxWalkInterval = 10 * time.Minute

	// maxPatience is the longest time between two walks while entries are made all the
	// time and none is of a query to us.
	maxPatience = 40 * time.Second
)

// pace decides at each poll whether the table is walked.
type pace struct {
	last     time.Time // the last walk, zero before the first
	interval time.Duration
	patience time.Duration
	lowest   uint64 // number of entries since the last walk
	view     *View  // of the last walk
	found    bool   // queries to us that were tracked, in the last walk
}

// poll is what is known without a walk.
type poll struct {
	at      time.Time
	count   uint64 // entries in the table
	arrived uint64 // queries that came to us in the window
	view    *View
	scraped bool // since the last walk
}

type decision string

const (
	walkNow   decision = "now"
	walkNot   decision = "not needed"
	walkLater decision = "later"
)

// decide decides whether a walk is needed: for the metrics, or to find out whether most
// queries to us are tracked.
func (p *pace) decide(now poll) decision {
	p.lowest = min(p.lowest, now.count)
	added := now.count - p.lowest
	wait := p.interval
	switch {
	case p.last.IsZero(), now.scraped, now.view != p.view:
	case now.count < fewTracked || 2*now.count <= now.arrived:
		return walkNot // most queries came to us and left no entry
	case p.found:
	case added < fewTracked || 2*added <= now.arrived:
		return walkNot // the entries are old: no query made them
	default:
		wait = max(wait, p.patience)
	}
	// Polls come at the same interval, and some a moment early.
	if now.at.Sub(p.last) < wait-pollInterval/2 {
		return walkLater
	}
	return walkNow
}

// walked notes a walk, and whether it found queries to us that were tracked.
func (p *pace) walked(now poll, found bool) {
	p.last, p.lowest, p.view, p.found = now.at, now.count, now.view, found
	if found {
		p.patience = 0
	} else {
		p.patience = min(max(2*p.patience, pollInterval), maxPatience)
	}
}

// failed notes a walk that failed, so that walks of a table that cannot be read take no
// more time than others.
func (p *pace) failed(at time.Time, cost time.Duration) {
	if !p.last.IsZero() {
		p.last = at
	}
	p.rest(cost)
}

// rest returns how long there is no other walk after one that took the processor time.
func (p *pace) rest(cost time.Duration) time.Duration {
	p.interval = min(max(cost*walkShare, pollInterval), maxWalkInterval)
	return p.interval
}
