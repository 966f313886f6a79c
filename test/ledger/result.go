package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/lab/clients"
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

	// blurred is how many seconds there may be that say little: the two nodes
	// differed, or changed while they were counted, by more than the ledger may be
	// off, or an earlier second was being counted all the while.
	blurred = 8

	// udpTimeout is nf_conntrack_udp_timeout in the namespaces of both nodes: so
	// long after the answer ends the entry of a port that asked once. Those of
	// ports that are used again, and of TCP connections, outlast the measurement.
	udpTimeout = 30 * time.Second
)

// Result is what one load showed. Its JSON form is stable.
type Result struct {
	Name string `json:"name"`
	Load string `json:"load"`

	Agree    bool     `json:"agree"`
	Failures []string `json:"failures,omitempty"`

	// Disturbances are why the nodes cannot be compared: the machine was too busy.
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
	// Skipped are those that passed while an earlier one was counted.
	Skipped int `json:"skipped"`
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
	// Apart is how many entries more or fewer the second node's clients had cause
	// for, by the clock of those who sent: the flows that they had begun by then,
	// less those that had been answered so long ago that their time was over.
	Apart int `json:"apart"`
	// Percent is how far the ledger is off.
	Percent float64 `json:"percent"`

	counted time.Duration // since the beginning
}

// blur is by how much the two may differ and agree.
func (s *Second) blur() float64 { return s.Moved + math.Abs(float64(s.Apart)) }

// percentOf is a part in percent of the kernel's entries.
func (s *Second) percentOf(n float64) float64 { return 100 * math.Abs(n) / max(float64(s.Kernel), 1) }

// ConntrackL is what the program conntrack lists, and what was counted by the
// means of this one before and after it.
type ConntrackL struct {
	Before int `json:"before"`
	Lines  int `json:"lines"`
	After  int `json:"after"`
}

// compareSent finds out whether both nodes were sent the same at the same time.
func (r *Result) compareSent(l load, began time.Time, sent [2][][]clients.Sent) {
	for node := range sent {
		for _, stream := range sent[node] {
			r.Queries += len(stream)
			for _, s := range stream {
				if s.Loss != "" {
					r.Lost++
				}
			}
		}
	}
	for stream := range sent[0] {
		for i := range min(len(sent[0][stream]), len(sent[1][stream])) {
			if sent[0][stream][i].Port != sent[1][stream][i].Port {
				r.OtherPorts++
			}
		}
	}
	nodes := [2]course{newCourse(l, began, sent[0]), newCourse(l, began, sent[1])}
	worst, at, blurs := 0.0, 0, r.Skipped
	for i := range r.Seconds {
		s := &r.Seconds[i]
		s.Apart = nodes[1].entries(s.counted) - nodes[0].entries(s.counted)
		if s.Second < settled {
			continue
		}
		queries := [2]int{nodes[0].queries.by(s.counted), nodes[1].queries.by(s.counted)}
		if apart := 100 * math.Abs(float64(queries[1]-queries[0])) / float64(queries[0]); apart > worst {
			worst, at = apart, s.Second
		}
		if s.percentOf(s.blur()) > everySecond {
			blurs++
		}
	}
	if worst > sentApart {
		r.Disturbances = append(r.Disturbances, fmt.Sprintf("by second %d the nodes had been sent numbers of queries that differ by %.1f %%", at, worst))
	}
	if share := 100 * float64(r.Lost) / float64(r.Queries); share > lost {
		r.Disturbances = append(r.Disturbances, fmt.Sprintf("%.1f %% of the queries were lost", share))
	}
	if blurs > blurred {
		r.Disturbances = append(r.Disturbances, fmt.Sprintf("%d seconds were not counted, or the nodes differed in them, or changed meanwhile, by more than %.0f %%", blurs, everySecond))
	}
}

// course is when a node was asked, as those who asked know it.
type course struct {
	queries times
	begun   times // flows
	over    times // entries whose time is over
}

// times are durations since the beginning, sorted.
type times []time.Duration

// by is how many there were by then.
func (t times) by(then time.Duration) int {
	n, _ := slices.BinarySearch(t, then+1)
	return n
}

// entries is how many there is cause for.
func (c *course) entries(then time.Duration) int { return c.begun.by(then) - c.over.by(then) }

func newCourse(l load, began time.Time, sent [][]clients.Sent) course {
	var c course
	i := 0
	for _, kind := range l.streams {
		for range kind.clients {
			var flow time.Time
			for _, s := range sent[i] {
				c.queries = append(c.queries, s.At.Sub(began))
				if !s.Flow.Equal(flow) {
					flow = s.Flow
					c.begun = append(c.begun, s.At.Sub(began))
				}
				if kind.kind == clients.FreshPort {
					c.over = append(c.over, s.At.Add(s.Latency+udpTimeout).Sub(began))
				}
			}
			i++
		}
	}
	for _, t := range []times{c.queries, c.begun, c.over} {
		slices.Sort(t)
	}
	return c
}

// judge computes how far the two are apart and whether that will do.
func (r *Result) judge() {
	sum, n := 0.0, 0
	for i := range r.Seconds {
		s := &r.Seconds[i]
		s.Percent = 100 * (s.Ledger - float64(s.Kernel)) / max(float64(s.Kernel), 1)
		if s.Second < settled {
			continue
		}
		off := math.Abs(s.Percent)
		r.WorstPercent = max(r.WorstPercent, off)
		sum, n = sum+off, n+1
		if off > everySecond+s.percentOf(s.blur()) {
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
	r.Agree = len(r.Failures)+len(r.Disturbances) == 0
}

// writeTable writes a line for each second, and the verdict.
func (r *Result) writeTable(w io.Writer) {
	fmt.Fprintf(w, "%s: %s\n\n  second   tracked entries   entries_avoided        off   changed meanwhile        apart\n", r.Name, r.Load)
	for _, s := range r.Seconds {
		fmt.Fprintf(w, "%8d  %16d  %16.0f  %+7.2f %%  %18.0f  %11d\n", s.Second, s.Kernel, s.Ledger, s.Percent, 2*s.Moved, s.Apart)
	}
	verdict := "agree"
	switch {
	case len(r.Disturbances) > 0:
		verdict = "CANNOT BE COMPARED, this machine is too busy:\n  " + strings.Join(append(slices.Clone(r.Disturbances), r.Failures...), "\n  ")
	case !r.Agree:
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
