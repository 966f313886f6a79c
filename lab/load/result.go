package load

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/lab"
)

// attempt is what became of one query. The zero latency with a loss is a lost
// one.
type attempt struct {
	latency time.Duration
	by      lab.Responder
	loss    string // why there was no right answer, "" if there was
}

// A Result is what became of a load.
type Result struct {
	// Elapsed is the time from the first query to the end of the last.
	Elapsed time.Duration

	plan     []plannedQuery
	attempts []attempt
}

// Figures sum up a load, or a part of one. Every query is either Answered or
// Lost.
type Figures struct {
	Queries int

	// Answered counts the queries whose first attempt brought the answer that
	// kube-dns has for the question, Lost all others.
	Answered, Lost int

	// LostTo counts the lost ones by reason: "timeout", an RCODE such as
	// "SERVFAIL", or what the kernel said.
	LostTo map[string]int

	// AnsweredBy counts the answered ones by responder.
	AnsweredBy map[lab.Responder]int

	// P50 and P99 are percentiles of the time from sending a query (or a SYN)
	// to its answer, over the answered ones.
	P50, P99 time.Duration
}

// Figures sum up the whole load.
func (r *Result) Figures() Figures {
	return r.figures(func(plannedQuery) bool { return true })
}

// Hits sum up the queries for names that are asked again and again, Misses
// those for names that are asked once, which no cache can know.
func (r *Result) Hits() Figures {
	return r.figures(func(q plannedQuery) bool { return q.class != unique })
}

// Misses sum up the queries for names that are asked only once.
func (r *Result) Misses() Figures {
	return r.figures(func(q plannedQuery) bool { return q.class == unique })
}

func (r *Result) figures(counts func(plannedQuery) bool) Figures {
	f := Figures{LostTo: make(map[string]int), AnsweredBy: make(map[lab.Responder]int)}
	var latencies []time.Duration
	for i, q := range r.plan {
		if !counts(q) {
			continue
		}
		f.Queries++
		if a := r.attempts[i]; a.loss != "" {
			f.Lost++
			f.LostTo[a.loss]++
		} else {
			f.Answered++
			f.AnsweredBy[a.by]++
			latencies = append(latencies, a.latency)
		}
	}
	slices.Sort(latencies)
	f.P50, f.P99 = percentile(latencies, 0.50), percentile(latencies, 0.99)
	return f
}

// percentile is the smallest value that is not below the given share of the
// sorted values (the nearest-rank method), 0 if there are none.
func percentile(sorted []time.Duration, share float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(share * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}

// Losses lists the reasons of losses, most frequent first, in brackets
// after a space; it is empty without losses.
func Losses(lostTo map[string]int) string {
	if len(lostTo) == 0 {
		return ""
	}
	reasons := slices.Sorted(maps.Keys(lostTo))
	slices.SortStableFunc(reasons, func(a, b string) int { return lostTo[b] - lostTo[a] })
	for i, reason := range reasons {
		reasons[i] = fmt.Sprintf("%s %s", lab.Grouped(lostTo[reason]), reason)
	}
	return " (" + strings.Join(reasons, ", ") + ")"
}
