package lease

import "time"

// Pace says how soon the next round of checks and lease probes is due. The kernel ends
// a lease that is not renewed, so rounds need not follow each other fast for a hang to
// be noticed in time. They do so where a probe may be lost or late, to have more tries
// within a lease: while many queries come, and for a while after a round that failed
// or was late. The zero value is calm.
type Pace struct {
	hurried time.Time // until when rounds follow each other fast
}

const (
	// calmShare is the part of a lease after which it is renewed on a calm node. The
	// rest is for the tries after one that fails. With a lease of a second each third
	// round comes as a listener wakes anyway, which waits for a query for two seconds.
	calmShare = 2. / 3

	// spare is the least time for these. A short lease leaves none, and is renewed as on
	// a busy node.
	spare = 300 * time.Millisecond

	// calmest is the longest time between two rounds: devices are looked at in each.
	calmest = time.Second

	// hurriedShare is the same as calmShare for a node that is not calm.
	hurriedShare = 0.2

	// hurryFor is how long rounds follow each other fast after the last reason to.
	hurryFor = 5 * time.Second

	// prompt is how long a round may take, from the time at which it was due. On a
	// calm node it takes less than a millisecond.
	prompt = 50 * time.Millisecond

	// fewQueries is how many queries may come in a second on a calm node: so few that
	// no buffer is ever full.
	fewQueries = 200
)

// FewQueries reports whether so many may come in the time on a calm node.
func FewQueries(n uint64, in time.Duration) bool { return float64(n) <= fewQueries*in.Seconds() }

// Past is a round that has ended.
type Past struct {
	Due, Ended time.Time
	Failed     bool          // a check or a lease probe was not answered
	Queries    uint64        // that came since the end of the round before it
	Since      time.Duration // that end
}

// Ended notes what a round was like.
func (p *Pace) Ended(r Past) {
	if r.Failed || !FewQueries(r.Queries, r.Since) || r.Ended.Sub(r.Due) > prompt {
		p.hurried = r.Ended.Add(hurryFor)
	}
}

// Calm reports whether there is no reason to hurry.
func (p *Pace) Calm(now time.Time) bool { return !now.Before(p.hurried) }

// Next is the time between the beginnings of two rounds that renew a lease; zero for
// none.
func (p *Pace) Next(now time.Time, lease time.Duration) time.Duration {
	calm := min(time.Duration(calmShare*float64(lease)), calmest)
	if lease > 0 && p.Calm(now) && lease-calm >= spare {
		return calm
	}
	return Hurried(lease)
}

// Hurried is Next on a node that is not calm.
func Hurried(lease time.Duration) time.Duration {
	if lease == 0 {
		return calmest
	}
	return time.Duration(hurriedShare * float64(lease))
}
