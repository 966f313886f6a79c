package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/lab/clients"
)

// good is a run in which nobody noticed anything.
func good() *Result {
	began := time.Unix(1_000_000, 0)
	r := &Result{Rate: 100}
	for i, w := range []way{replaced, predecessorDies, successorDies, cold} {
		round := &Round{Round: i + 1, Way: w, UpstreamBefore: 20, UpstreamAfter: 21, AvoidedBefore: 1000, AvoidedAfter: 1010, Path: byCoreDNS, survivor: byCoreDNS}
		round.Left = round.wanted()
		round.begin = began.Add(time.Duration(i) * time.Minute)
		round.end = round.begin.Add(10 * time.Second)
		r.Rounds = append(r.Rounds, round)
	}
	r.Rounds[3].UpstreamAfter, r.Rounds[3].AvoidedAfter = 90, 0
	return r
}

// much is a round in which much state was taken.
func much(r Round, seconds, answers float64) Round {
	r.StateBytes, r.StateSeconds, r.P99Before, r.P99Meanwhile = muchState, seconds, 1, answers
	return r
}

// TestJudge has a row for each bar.
func TestJudge(t *testing.T) {
	for _, tc := range []struct {
		name      string
		edit      func(*Result)
		failures  int
		disturbed bool
	}{
		{"nothing", func(*Result) {}, 0, false},
		{"one query", func(r *Result) { r.Rounds[0].Lost = map[string]int{"x": 1} }, 1, false},
		{"one query at the death of a successor", func(r *Result) { r.Rounds[2].Lost = map[string]int{"x": 1} }, 1, false},
		{"100 ms at the death of a predecessor", func(r *Result) { r.Rounds[1].Lost = map[string]int{"x": 10} }, 0, false},
		{"more at the death of a predecessor", func(r *Result) { r.Rounds[1].Lost = map[string]int{"x": 11} }, 1, false},
		{"a hit ratio, and what is asked upstream", func(r *Result) { r.Rounds[0].UpstreamAfter = 35 }, 2, false},
		{"avoided entries", func(r *Result) { r.Rounds[0].AvoidedAfter = 970 }, 1, false},
		{"much state", func(r *Result) { *r.Rounds[0] = much(*r.Rounds[0], 1, 2) }, 0, false},
		{"much state in a long time", func(r *Result) { *r.Rounds[0] = much(*r.Rounds[0], 1.1, 2) }, 1, false},
		{"slow answers beside much state", func(r *Result) { *r.Rounds[0] = much(*r.Rounds[0], 1, 2.1) }, 1, false},
		{"a reversed entry", func(r *Result) { r.Rounds[0].Reversed = 1 }, 1, false},
		{"a tracked query", func(r *Result) { r.Rounds[0].Tracked = 1 }, 1, false},
		{"tracked queries at the death of a predecessor", func(r *Result) { r.Rounds[1].Tracked = 9 }, 0, false},
		{"a table", func(r *Result) { r.Rounds[2].Left.Tables = 2 }, 1, false},
		{"a socket for the handover", func(r *Result) { r.Rounds[3].Left.Handover = 1 }, 1, false},
		{"a program", func(r *Result) { r.Rounds[0].Left.Programs = 1 }, 1, false},
		{"no hit in the kernel", func(r *Result) { r.Rounds[0].survivor = fromKernel; r.Rounds[0].Left = r.Rounds[0].wanted() }, 1, false},
		{"after the end", func(r *Result) { r.End.Links = 1 }, 1, false},
		{"a probe", func(r *Result) { r.FailedProbes = map[string]int{"8080: connection refused": 1} }, 1, false},
		{"between the rounds", func(r *Result) { r.Between = map[string]int{"x": 1} }, 0, true},
		{"a lease", func(r *Result) { r.Rounds[0].Lapses = 1 }, 0, true},
	} {
		r := good()
		tc.edit(r)
		r.judge()
		if len(r.Failures) != tc.failures || (len(r.Disturbances) > 0) != tc.disturbed {
			t.Errorf("%s: failures %q, disturbances %q", tc.name, r.Failures, r.Disturbances)
		}
		if ok := strings.HasPrefix(r.summary(), "handover: ok: 1 replacements"); ok != (tc.failures == 0) {
			t.Errorf("%s: %s", tc.name, r.summary())
		}
	}
}

// TestAssign: a lost query belongs to the round in which it was sent.
func TestAssign(t *testing.T) {
	r := good()
	began := r.Rounds[0].begin.Add(-time.Second)
	var sent [][]clients.Sent
	for _, k := range kinds {
		for range k.clients {
			sent = append(sent, []clients.Sent{{At: began}})
		}
	}
	sent[0] = []clients.Sent{{At: began, Loss: "timeout"}, {At: r.Rounds[0].end.Add(time.Second), Loss: "timeout"}, {At: r.Rounds[0].begin.Add(time.Second), Loss: "timeout"}}
	sent[len(sent)-1][0] = clients.Sent{At: r.Rounds[2].end.Add(-time.Second), Loss: "EOF"}
	r.assign(sent, began, r.Rate)
	if total(r.Filling) != 1 || total(r.Between) != 1 || r.Rounds[0].Lost["udp-fresh-port: timeout"] != 1 || r.Rounds[1].Lost != nil || r.Rounds[2].Lost["tcp-long: EOF"] != 1 {
		t.Errorf("between %v, rounds %v %v %v", r.Between, r.Rounds[0].Lost, r.Rounds[1].Lost, r.Rounds[2].Lost)
	}
	if r.UDP != 36+6+240+12+2 || r.NewTCP != 24 || r.LongTCP != 50 {
		t.Errorf("%d, %d and %d queries", r.UDP, r.NewTCP, r.LongTCP)
	}
	if len(r.Disturbances) != 1 {
		t.Errorf("disturbances %q, want that the load was not sent", r.Disturbances)
	}
}

// TestAssignProbes: probes may fail while a predecessor dies.
func TestAssignProbes(t *testing.T) {
	r := good()
	r.probed = []failedProbe{{r.Rounds[0].begin.Add(time.Second), "a"}, {r.Rounds[1].begin.Add(time.Second), "b"}, {r.Rounds[1].end.Add(time.Second), "a"}}
	r.assignProbes()
	if len(r.FailedProbes) != 1 || r.FailedProbes["a"] != 2 {
		t.Errorf("%v", r.FailedProbes)
	}
}

// TestWays: most rounds replace, and the last one is cold.
func TestWays(t *testing.T) {
	var got []way
	for round := 1; round <= 6; round++ {
		got = append(got, wayOf(round, 5))
	}
	if want := []way{replaced, replaced, successorDies, replaced, predecessorDies, cold}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
