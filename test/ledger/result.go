package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/lab"
)

// What is asked of the ledger.
const (
	settled     = 10  // seconds until it is asked anything
	everySecond = 2.0 // percent by which it may be off in any one
	onAverage   = 1.0 // percent by which it may be off on average

	// sentApart is by how many percent the two nodes may have been sent different
	// numbers of queries, by any second, and lost the percentage of queries that
	// may have been lost. Beyond it the machine was too busy, and the two cannot
	// be compared.
	sentApart = 2.0
	lost      = 0.5

	// slowCounts is in how many seconds to read the table may take so long that
	// half of what changed meanwhile is more than the ledger may be off.
	slowCounts = 8
)

// Result is what one load showed. Its JSON form is stable.
type Result struct {
	Name string `json:"name"`
	Load string `json:"load"`

	Agree    bool     `json:"agree"`
	Failures []string `json:"failures,omitempty"`

	// Disturbances are why the nodes cannot be compared.
	Attempts     int      `json:"attempts"`
	Disturbances []string `json:"disturbances,omitempty"`

	// Of both nodes: queries sent, those without an answer, and those of the
	// second that came from another source port than their like of the first.
	Queries    int `json:"queries"`
	Lost       int `json:"lost"`
	OtherPorts int `json:"other_ports"`

	// From the 10th second on.
	WorstPercent float64 `json:"worst_percent"`
	MeanPercent  float64 `json:"mean_percent"`

	ConntrackL ConntrackL `json:"conntrack_l"`

	// LeftOnUntracked is the most entries of clients that were seen in the table
	// of the node that tracks none.
	LeftOnUntracked int `json:"left_on_untracked"`

	Seconds []Second `json:"seconds"`
}

// Second is one count of both.
type Second struct {
	Second int `json:"second"`
	// Kernel is the number of entries of clients in the first node's table.
	Kernel int `json:"kernel"`
	// Ledger is what the second node says it avoids.
	Ledger float64 `json:"ledger"`
	// Moved is half of what the latter changed by while the table was read: so
	// much the two may differ and agree.
	Moved float64 `json:"moved"`
	// Apart is how many queries more or fewer the second node had been sent: for
	// so many the ledger cannot know of the entry, or the kernel has none yet.
	Apart int `json:"apart"`
	// Percent is how far the ledger is off.
	Percent float64 `json:"percent"`
}

// ConntrackL is what the program conntrack lists, and what was counted by the
// means of this one before and after it.
type ConntrackL struct {
	Before int `json:"before"`
	Lines  int `json:"lines"`
	After  int `json:"after"`
}

// compareSent finds out whether both nodes were sent the same at the same time.
func (r *Result) compareSent(began time.Time, sent [2][][]lab.Sent) {
	var times [2][]time.Duration
	for node := range sent {
		for _, stream := range sent[node] {
			for _, s := range stream {
				times[node] = append(times[node], s.At.Sub(began))
				if s.Loss != "" {
					r.Lost++
				}
			}
		}
		slices.Sort(times[node])
		r.Queries += len(times[node])
	}
	for stream := range sent[0] {
		for i := range min(len(sent[0][stream]), len(sent[1][stream])) {
			if sent[0][stream][i].Port != sent[1][stream][i].Port {
				r.OtherPorts++
			}
		}
	}
	worst, at := 0.0, 0
	for i := range r.Seconds {
		s := &r.Seconds[i]
		by := func(node int) int {
			n, _ := slices.BinarySearch(times[node], time.Duration(s.Second)*time.Second)
			return n
		}
		s.Apart = by(1) - by(0)
		if apart := 100 * math.Abs(float64(s.Apart)) / float64(by(0)); s.Second >= settled && apart > worst {
			worst, at = apart, s.Second
		}
	}
	if worst > sentApart {
		r.Disturbances = append(r.Disturbances, fmt.Sprintf("by second %d the nodes had been sent numbers of queries that differ by %.1f %%", at, worst))
	}
	if share := 100 * float64(r.Lost) / float64(r.Queries); share > lost {
		r.Disturbances = append(r.Disturbances, fmt.Sprintf("%.1f %% of the queries were lost", share))
	}
}

// judge computes how far the two are apart and whether that will do.
func (r *Result) judge() {
	sum, n, slow := 0.0, 0, 0
	for i := range r.Seconds {
		s := &r.Seconds[i]
		s.Percent = 100 * (s.Ledger - float64(s.Kernel)) / max(float64(s.Kernel), 1)
		if s.Second < settled {
			continue
		}
		percent := func(n float64) float64 { return 100 * math.Abs(n) / max(float64(s.Kernel), 1) }
		off, moved, apart := math.Abs(s.Percent), percent(s.Moved), percent(float64(s.Apart))
		r.WorstPercent = max(r.WorstPercent, off)
		sum, n = sum+off, n+1
		if moved > everySecond {
			slow++
		}
		if off > everySecond+moved+apart {
			r.Failures = append(r.Failures, fmt.Sprintf("second %d: %.0f of %d entries, %+.1f %%", s.Second, s.Ledger, s.Kernel, s.Percent))
		}
	}
	if r.MeanPercent = sum / float64(n); r.MeanPercent > onAverage {
		r.Failures = append(r.Failures, fmt.Sprintf("off by %.1f %% on average", r.MeanPercent))
	}
	if c := r.ConntrackL; c.Lines > c.Before || c.Lines < c.After {
		r.Failures = append(r.Failures, fmt.Sprintf("conntrack -L lists %d entries, between our own counts of %d and %d", c.Lines, c.Before, c.After))
	}
	if r.LeftOnUntracked > 0 {
		r.Failures = append(r.Failures, fmt.Sprintf("%d entries of clients on the node that tracks none", r.LeftOnUntracked))
	}
	if slow > slowCounts {
		r.Failures = append(r.Failures, fmt.Sprintf("in %d seconds the entries changed much while they were counted", slow))
	}
	r.Failures = append(r.Failures, r.Disturbances...)
	r.Agree = len(r.Failures) == 0
}

// writeTable writes a line for each second, and the verdict.
func (r *Result) writeTable(w io.Writer) {
	fmt.Fprintf(w, "%s: %s\n\n  second   tracked entries   entries_avoided        off   changed meanwhile   sent apart\n", r.Name, r.Load)
	for _, s := range r.Seconds {
		fmt.Fprintf(w, "%8d  %16d  %16.0f  %+7.2f %%  %18.0f  %11d\n", s.Second, s.Kernel, s.Ledger, s.Percent, 2*s.Moved, s.Apart)
	}
	verdict := "agree"
	if !r.Agree {
		verdict = "DO NOT AGREE:\n  " + strings.Join(r.Failures, "\n  ")
	}
	fmt.Fprintf(w, `
from the %dth second on: off by %.2f %% at the worst, %.2f %% on average
%d queries, %d lost, %d from another port on the second node; attempt %d
conntrack -L lists %d entries at the end, our count is %d before and %d after it
the two %s

`, settled, r.WorstPercent, r.MeanPercent, r.Queries, r.Lost, r.OtherPorts, r.Attempts,
		r.ConntrackL.Lines, r.ConntrackL.Before, r.ConntrackL.After, verdict)
}
