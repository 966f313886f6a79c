package lease

import "time"

// Cause is why queries went to the cluster's DNS although we meant to take them.
type Cause uint8

const (
	// Unanswered says that checks or lease probes were not answered. The process was stopped,
	// or something in it hangs.
	Unanswered Cause = iota
	// Starved says that the process was ready to run, and others had the processors.
	Starved
	// Throttled says that the process used up the CPU limit of its control group.
	Throttled
)

// Causes lists them all.
func Causes() []Cause { return []Cause{Unanswered, Starved, Throttled} }

// String gives the value of the metric's label.
func (c Cause) String() string { return [...]string{"unanswered", "starved", "throttled"}[c] }

// backoff learns from lapses for how long queries are left to the cluster's DNS
// before they are taken again. Who takes them at once into the same fault sends
// clients to and fro, and loses some of their queries each time.
//
// A first lapse costs no wait. From the second on, or from the first that is known
// to come again under the same load, each waits twice as long. What was learned is
// forgotten after a time without a lapse that is twice the last wait, so that it
// grows as well. The zero value has learned nothing.
type backoff struct {
	count int           // lapses that are remembered
	wait  time.Duration // after the last of them
	until time.Time     // when it ends
	cause Cause
}

const (
	// againWait is the wait after the second lapse.
	againWait = 5 * time.Second

	// throttledWait is the wait after the first lapse by throttling: neither the
	// limit nor the load is likely to change sooner.
	throttledWait = time.Minute

	longestWait   = 16 * time.Minute
	shortestQuiet = time.Minute
)

// lapsed notes that queries went to the cluster's DNS.
func (b *backoff) lapsed(now time.Time, cause Cause) {
	if b.forgotten(now) {
		*b = backoff{}
	}
	wait := 2 * b.wait
	if b.count > 0 {
		wait = max(wait, againWait)
	}
	if cause == Throttled {
		wait = max(wait, throttledWait)
	}
	b.count++
	b.wait, b.cause = min(wait, longestWait), cause
	b.until = now.Add(b.wait)
}

// quiet is how long no lease may run out after the wait until all is forgotten.
func (b *backoff) quiet() time.Duration { return max(2*b.wait, shortestQuiet) }

func (b *backoff) forgotten(now time.Time) bool { return now.Sub(b.until) > b.quiet() }

// waits reports whether queries are not to be taken yet.
func (b *backoff) waits(now time.Time) bool { return now.Before(b.until) }
