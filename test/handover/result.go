package main

import (
	"fmt"
	"io"
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/lab/clients"
)

// The bars.
const (
	// killedWindow is the time whose queries the death of a predecessor may cost.
	killedWindow = 100 * time.Millisecond
	// hitRatioKept is the part of the hit ratio that is there after a replacement.
	hitRatioKept = 0.98
	// moreUpstream is by how much the queries upstream may rise.
	moreUpstream = 1.1
	// avoidedOff is by which part the avoided entries may be off.
	avoidedOff = 0.02
	// sentLess is which part of the load must have been sent.
	sentLess = 0.95
	// muchState is what a cache of 32 MiB takes on the socket. It must be handed over within
	// stateTime, while answers take slower times as long at most.
	muchState = 20 << 20
	stateTime = time.Second
	// fullCache is the number of names that fill a cache of 32 MiB.
	fullCache = 80_000
	slower    = 2
)

// Result is the result of a run. Its JSON form is stable.
type Result struct {
	Rate  float64 `json:"rate"`
	Names int     `json:"names"`

	Failures     []string `json:"failures,omitempty"`
	Disturbances []string `json:"disturbances,omitempty"`

	Rounds       []*Round       `json:"rounds"`
	UDP          int            `json:"udp"`
	NewTCP       int            `json:"new_tcp"`
	LongTCP      int            `json:"long_tcp"`
	Filling      map[string]int `json:"lost_while_filling,omitempty"` // the cache, before the first round
	Between      map[string]int `json:"lost_between_rounds,omitempty"`
	Probes       int            `json:"probes"`
	FailedProbes map[string]int `json:"failed_probes,omitempty"`
	End          Left           `json:"left_at_the_end"`
	Generator    float64        `json:"generator"` // processors that the load and the probes took

	probed []failedProbe
}

// Round is one replacement.
type Round struct {
	Round int    `json:"round"`
	Way   way    `json:"way"`
	Path  path   `json:"path"`
	Start string `json:"start"` // what the log of the successor says

	// Lost queries by kind and reason, of those sent from the start of the successor to
	// some seconds after the end of the predecessor.
	Lost map[string]int `json:"lost,omitempty"`

	UpstreamBefore float64 `json:"upstream_before"` // queries a second
	UpstreamAfter  float64 `json:"upstream_after"`
	AvoidedBefore  float64 `json:"avoided_before"`
	AvoidedAfter   float64 `json:"avoided_after"`

	StateBytes   float64 `json:"state_bytes"` // that the successor took
	StateSeconds float64 `json:"state_seconds"`
	P99Before    float64 `json:"p99_before"`    // of answers over UDP, in milliseconds
	P99Meanwhile float64 `json:"p99_meanwhile"` // until the successor is attached

	Lapses     float64 `json:"lapses"`      // of leases: the machine was too busy
	KernelHits float64 `json:"kernel_hits"` // of the instance after the replacement

	Tracked  int  `json:"tracked_queries"` // new entries of queries to the listen addresses
	Reversed int  `json:"reversed_entries"`
	Left     Left `json:"left"`

	begin, attached, end time.Time
	before, meanwhile    []time.Duration // latencies over UDP
	survivor             path            // of the instance after the replacement
}

// hitRatio is the part of the queries that were not asked upstream.
func hitRatio(upstream, asked float64) float64 { return max(0, 1-upstream/asked) }

// assign counts the queries, and puts the lost ones into their rounds.
func (r *Result) assign(sent [][]clients.Sent, began time.Time, rate float64) {
	r.Between, r.Filling = map[string]int{}, map[string]int{}
	last := began
	for _, stream := range sent {
		for _, s := range stream {
			if s.At.After(last) {
				last = s.At
			}
		}
	}
	i := 0
	for _, k := range kinds {
		for range k.clients {
			for _, s := range sent[i] {
				r.count(k.kind, s)
			}
			i++
		}
	}
	for _, round := range r.Rounds {
		round.P99Before, round.P99Meanwhile = p99(round.before), p99(round.meanwhile)
	}
	want := asked(rate) * last.Sub(began).Seconds()
	if got := float64(r.UDP + r.NewTCP + r.LongTCP); got < want*sentLess {
		r.Disturbances = append(r.Disturbances, fmt.Sprintf("%.0f queries were sent, and not %.0f", got, want))
	}
}

// assignProbes counts the probes that failed. The death of a predecessor ends its listeners,
// and those of the successor may not be open yet.
func (r *Result) assignProbes() {
	r.FailedProbes = map[string]int{}
	for _, f := range r.probed {
		died := slices.ContainsFunc(r.Rounds, func(round *Round) bool {
			return round.Way == predecessorDies && f.at.After(round.begin) && f.at.Before(round.end)
		})
		if !died {
			r.FailedProbes[f.reason]++
		}
	}
}

func (r *Result) count(k clients.StreamKind, s clients.Sent) {
	switch k {
	case clients.ShortTCP:
		r.NewTCP++
	case clients.LongTCP:
		r.LongTCP++
	default:
		r.UDP++
		for _, round := range r.Rounds {
			round.time(s)
		}
	}
	if s.Loss == "" {
		return
	}
	lost := r.Between
	if s.At.Before(r.Rounds[0].begin) {
		lost = r.Filling
	}
	for _, round := range r.Rounds {
		if s.At.After(round.begin) && s.At.Before(round.end) {
			if round.Lost == nil {
				round.Lost = map[string]int{}
			}
			lost = round.Lost
		}
	}
	lost[string(k)+": "+s.Loss]++
}

// time notes how long an answer took.
func (round *Round) time(s clients.Sent) {
	switch {
	case s.Loss != "" || s.At.After(round.attached):
	case s.At.After(round.begin):
		round.meanwhile = append(round.meanwhile, s.Latency)
	case s.At.After(round.begin.Add(-hold)):
		round.before = append(round.before, s.Latency)
	}
}

// p99 is the 99th percentile in milliseconds, 0 of nothing.
func p99(times []time.Duration) float64 {
	if len(times) == 0 {
		return 0
	}
	slices.Sort(times)
	return float64(times[len(times)*99/100]) / float64(time.Millisecond)
}

// judge compares with the bars.
func (r *Result) judge() {
	for _, round := range r.Rounds {
		round.judge(r)
	}
	if n := total(r.Between); n > 0 {
		r.Disturbances = append(r.Disturbances, fmt.Sprintf("between the replacements %d queries were lost: %s", n, reasons(r.Between)))
	}
	if r.End != (Left{}) {
		r.fail("left after the end of the last instance: %+v", r.End)
	}
	if n := total(r.FailedProbes); n > 0 {
		r.fail("%d of %d scrapes and probes failed: %s", n, r.Probes, reasons(r.FailedProbes))
	}
}

func (r *Result) fail(format string, v ...any) {
	r.Failures = append(r.Failures, fmt.Sprintf(format, v...))
}

func (round *Round) judge(r *Result) {
	fail := func(format string, v ...any) {
		r.fail("round %d, %s: %s", round.Round, round.Way, fmt.Sprintf(format, v...))
	}
	allowed := 0
	if round.Way == predecessorDies {
		allowed = int(asked(r.Rate) * killedWindow.Seconds())
	}
	if round.Lapses > 0 {
		r.Disturbances = append(r.Disturbances, fmt.Sprintf("round %d: %.0f leases ran out", round.Round, round.Lapses))
	}
	if n := total(round.Lost); n > allowed && round.Way != cold {
		fail("%d queries were lost, and may be %d: %s", n, allowed, reasons(round.Lost))
	}
	if round.Reversed > 0 {
		fail("%d answers were tracked as flows of their own", round.Reversed)
	}
	if n := round.Tracked; n > 0 && round.Way != predecessorDies {
		fail("%d queries were tracked", n)
	}
	if want := round.wanted(); round.Left != want {
		fail("left are %+v, want %+v", round.Left, want)
	}
	if hits := round.KernelHits > 0; hits != (round.survivor == fromKernel) {
		fail("%.0f hits in the kernel with %s", round.KernelHits, round.survivor)
	}
	if round.Way != replaced {
		return
	}
	before, after := hitRatio(round.UpstreamBefore, asked(r.Rate)), hitRatio(round.UpstreamAfter, asked(r.Rate))
	if after < before*hitRatioKept {
		fail("the hit ratio is %.3f, and was %.3f", after, before)
	}
	if round.UpstreamAfter > round.UpstreamBefore*moreUpstream+slack {
		fail("%.0f queries a second are asked upstream, and were %.0f", round.UpstreamAfter, round.UpstreamBefore)
	}
	if off := round.avoidedOff(); off > avoidedOff {
		fail("the avoided entries are off by %.1f %%", off*100)
	}
	if round.StateBytes < muchState {
		if r.Names >= fullCache {
			fail("%.0f MiB of state are not those of a full cache: the warm-up was too short", round.StateBytes/(1<<20))
		}
		return
	}
	if round.StateSeconds > stateTime.Seconds() {
		fail("%.0f MiB of state took %.2f s", round.StateBytes/(1<<20), round.StateSeconds)
	}
	if round.P99Meanwhile > round.P99Before*slower {
		fail("99 %% of the answers took up to %.2f ms meanwhile, and %.2f ms before", round.P99Meanwhile, round.P99Before)
	}
}

// slack is how many queries a second upstream are chance.
const slack = 10

// families is that of the listen addresses.
const families = 2

// wanted is what one instance has.
func (round *Round) wanted() Left {
	l := Left{Tables: 1, Handover: 1, UDP: families, TCP: families, Addresses: families, Links: round.Left.Links}
	if round.Way == cold {
		l.Handover = 0
	}
	if round.survivor != byCoreDNS {
		l.UDP += families * min(runtime.NumCPU(), 8) // see the default of `sockets`
	}
	if round.survivor == fromKernel {
		l.Programs = 1
	}
	return l
}

func (round *Round) avoidedOff() float64 {
	if round.AvoidedBefore == 0 {
		return 0
	}
	return math.Abs(round.AvoidedAfter-round.AvoidedBefore) / round.AvoidedBefore
}

func total(lost map[string]int) (n int) {
	for _, c := range lost {
		n += c
	}
	return n
}

func reasons(lost map[string]int) string {
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(lost)) {
		parts = append(parts, fmt.Sprintf("%d %s", lost[reason], reason))
	}
	return strings.Join(parts, ", ")
}

// writeTable writes a line for each replacement. The last line is the summary.
func (r *Result) writeTable(w io.Writer) {
	fmt.Fprintf(w, "%5s  %-18s  %-11s  %5s  %17s  %15s  %11s  %18s  %s\n", "round", "way", "path", "lost", "upstream q/s", "hit ratio", "avoided off", "p99, meanwhile, ms", "start")
	for _, round := range r.Rounds {
		fmt.Fprintf(w, "%5d  %-18s  %-11s  %5d  %7.0f -> %6.0f  %.3f -> %.3f  %9.1f %%  %8.2f  %8.2f  %s\n", round.Round, round.Way, round.Path, total(round.Lost),
			round.UpstreamBefore, round.UpstreamAfter, hitRatio(round.UpstreamBefore, asked(r.Rate)), hitRatio(round.UpstreamAfter, asked(r.Rate)),
			round.avoidedOff()*100, round.P99Before, round.P99Meanwhile, round.Start)
	}
	for _, f := range r.Failures {
		fmt.Fprintln(w, "FAILED:", f)
	}
	fmt.Fprintln(w, r.summary())
}

// summary is one line.
func (r *Result) summary() string {
	lost := map[way]int{}
	count := map[way]int{}
	var before, after, coldAfter float64
	worst := 0.0
	for _, round := range r.Rounds {
		lost[round.Way] += total(round.Lost)
		count[round.Way]++
		switch round.Way {
		case replaced:
			before += round.UpstreamBefore
			after += round.UpstreamAfter
			worst = max(worst, round.avoidedOff())
		case cold:
			coldAfter = round.UpstreamAfter
		}
	}
	n := max(float64(count[replaced]), 1)
	verdict := "ok"
	if len(r.Failures) > 0 {
		verdict = fmt.Sprintf("%d FAILURES", len(r.Failures))
	}
	ratio := func(upstream float64) float64 { return hitRatio(upstream, asked(r.Rate)) }
	return fmt.Sprintf("handover: %s: %d replacements, %d of %d queries over UDP, %d new TCP connections and %d queries over long ones lost; %d at %d deaths of a predecessor, %d at %d of a successor; %d of %d scrapes and probes failed; hit ratio %.3f before, %.3f after, %.3f cold; upstream %.0f/s before, %.0f/s after, %.0f/s cold; avoided entries off by %.1f %% at most; the load took %.2f processors",
		verdict, count[replaced], lost[replaced], r.UDP, r.NewTCP, r.LongTCP, lost[predecessorDies], count[predecessorDies], lost[successorDies], count[successorDies], total(r.FailedProbes), r.Probes,
		ratio(before/n), ratio(after/n), ratio(coldAfter), before/n, after/n, coldAfter, worst*100, r.Generator)
}
