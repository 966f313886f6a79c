package lease

import (
	"fmt"
	"slices"
	"time"
)

// Load is what the kernel has made of this process so far: it counts up.
type Load struct {
	// Limit is the CPU limit of the control group, in processors; 0 for none.
	Limit float64
	// Throttled is the time in whose periods the limit was used up.
	Throttled time.Duration
	// Starved is the time for which threads were ready to run and did not.
	Starved time.Duration
	// Arrived is the number of queries that were read from the listeners, and Dropped
	// that of those for which there was no room. The latter is counted only under a
	// limit.
	Arrived, Dropped uint64
	// Waiting is how many of the queries that arrived wait for a processor now, and
	// Queued about how many are in the buffers of the listeners. The latter is counted
	// only under a limit, too.
	Waiting, Queued uint64
}

// Pressure tells from two samples of the load what happened between them. The zero
// value has none.
type Pressure struct {
	former, last sample
	excess       float64 // see Overloaded

	history []sample // the latest, the last included
}

// sample is the load at a time.
type sample struct {
	at   time.Time
	load Load
}

const (
	// SampleInterval is the time between two samples under a limit: some of its periods,
	// and a part of a lease. Without a limit it is easyInterval.
	SampleInterval = 250 * time.Millisecond
	easyInterval   = time.Second

	// lapseTakes is the least time in which a lease runs out.
	lapseTakes = time.Second

	// mostly is the part of the time for which the process must not have run, to be
	// the reason of a lapse.
	mostly = 0.5

	// toleratedLoss is the part of all queries that may be lost for good while the
	// limit is used up. lossBudget is how many seconds' worth of queries may be lost
	// beyond that: a second in which a fifth is lost, or five with 6 %.
	toleratedLoss = 0.02
	lossBudget    = 0.2

	// longestBacklog is how long queries may wait for a processor. A lease probe waits
	// among them, and the buffers of the listeners overflow meanwhile.
	longestBacklog = 500 * time.Millisecond
)

// Note takes a sample. It reports whether the CPU limit is another than before.
func (p *Pressure) Note(now time.Time, l Load) (limitChanged bool) {
	first := p.last.at.IsZero()
	p.former, p.last = p.last, sample{now, l}
	p.history = append(p.history, p.last)
	if n := len(p.history); n > int(2*lapseTakes/SampleInterval) {
		p.history = slices.Clone(p.history[1:])
	}
	if first {
		return false
	}
	lost, backlog := p.Lost()
	switch {
	case p.Cause() != Throttled || lost == 0 && backlog < longestBacklog:
		p.excess = 0
	case backlog >= longestBacklog:
		p.excess = lossBudget
	default:
		p.excess = max(0, p.excess+(lost-toleratedLoss)*min(p.elapsed().Seconds(), 1))
	}
	return l.Limit != p.former.load.Limit
}

// Lost is the part of the queries between the last two samples that was dropped, or
// made those wait longer that come after them, and backlog how long these wait.
func (p *Pressure) Lost() (part float64, backlog time.Duration) {
	from, to := p.former.load, p.last.load
	arrived, dropped := rise(from.Arrived, to.Arrived), rise(from.Dropped, to.Dropped)
	behind := rise(from.Waiting, to.Waiting)
	if arrived+dropped == 0 {
		return 0, 0
	}
	part = float64(dropped+behind) / float64(arrived+dropped)
	served := max(float64(arrived)-float64(to.Waiting)+float64(from.Waiting), 1)
	return part, time.Duration(float64(to.Waiting+to.Queued) / served * float64(p.elapsed()))
}

// rise is by how much a counter has gone up. Sockets that are closed take theirs
// along.
func rise(from, to uint64) uint64 {
	if to < from {
		return 0
	}
	return to - from
}

// Due reports whether it is time for the next sample.
func (p *Pressure) Due(now time.Time) bool { return now.Sub(p.last.at) >= p.interval()/2 }

// Limit is the CPU limit of the last sample.
func (p *Pressure) Limit() float64 { return p.last.load.Limit }

// interval is the time until the next sample.
func (p *Pressure) interval() time.Duration {
	if p.last.load.Limit > 0 {
		return SampleInterval
	}
	return easyInterval
}

// SinceLapse is what happened since a lease that runs out now was renewed.
func (p *Pressure) SinceLapse() Pressure {
	out := Pressure{former: p.former, last: p.last}
	for _, l := range p.history {
		if p.last.at.Sub(l.at) >= lapseTakes {
			out.former = l
		}
	}
	return out
}

// Overloaded reports whether so many queries are lost to the limit that the cluster's
// DNS had better answer them. Queries that are answered, only slowly, are no reason.
func (p *Pressure) Overloaded() bool { return p.excess >= lossBudget }

// elapsed is the time between the last two samples.
func (p *Pressure) elapsed() time.Duration { return p.last.at.Sub(p.former.at) }

// Cause is what kept the process from running between the last two samples. A process
// that is stopped is neither throttled nor ready to run.
func (p *Pressure) Cause() Cause {
	elapsed := p.elapsed()
	if p.former.at.IsZero() || elapsed <= 0 {
		return Unanswered
	}
	least := time.Duration(mostly * float64(elapsed))
	switch {
	case p.last.load.Throttled-p.former.load.Throttled >= least:
		return Throttled
	case p.last.load.Starved-p.former.load.Starved >= least:
		return Starved
	}
	return Unanswered
}

// Explain says what the cause between the last two samples comes from and what can be
// done, "" where nothing more is known.
func (p *Pressure) Explain() string {
	elapsed := p.elapsed()
	switch p.Cause() {
	case Throttled:
		used := min(p.last.load.Throttled-p.former.load.Throttled, elapsed)
		return fmt.Sprintf("this process used up its CPU limit of %s in %.0f %% of the last %s, and does not run in the rest of each period: raise the limit (resources.limits.cpu of its container), or take it away and keep the request",
			MilliCPU(p.last.load.Limit), 100*used.Seconds()/elapsed.Seconds(), elapsed.Round(100*time.Millisecond))
	case Starved:
		waited := min(p.last.load.Starved-p.former.load.Starved, elapsed)
		return fmt.Sprintf("this process was ready to run for %s of the last %s and others had the processors: relieve the node, or raise the CPU request (resources.requests.cpu of its container)",
			waited.Round(100*time.Millisecond), elapsed.Round(100*time.Millisecond))
	}
	return ""
}

// MilliCPU writes processors as Kubernetes does.
func MilliCPU(n float64) string { return fmt.Sprintf("%.0fm", 1000*n) }
