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

// The bars of the ledger.
const (
	settled     = 10  // seconds before it must be right
	everySecond = 2.0 // percent by which it may be off in any one
	onAverage   = 1.0 // percent by which it may be off on average

	// sentApart is by how many percent the numbers of queries to the two nodes may
	// differ, at any second, and lost how many percent of the queries may be lost. If
	// there is more, the machine was too busy, and the two cannot be compared.
	sentApart = 2.0
	lost      = 0.5

	// blurred is how many seconds may prove little: the two nodes differed, or changed
	// while they were counted, by more than the ledger may be off, or the count of an
	// earlier second was not over.
	blurred = 8

	// udpTimeout is nf_conntrack_udp_timeout in the namespaces of both nodes. The entry
	// of a port that asked once expires so long after the answer. Entries of ports that
	// are used again, and of TCP connections, outlast the measurement.
	udpTimeout = 30 * time.Second
)

// Result is the result of one load. Its JSON form is stable.
type Result struct {
	Name string `json:"name"`
	Load string `json:"load"`

	Agree    bool     `json:"agree"`
	Failures []string `json:"failures,omitempty"`

	// Disturbances are the reasons why the nodes cannot be compared: the machine was
	// too busy.
	Attempts     int      `json:"attempts"`
	Disturbances []string `json:"disturbances,omitempty"`

	// Of both nodes: queries sent, and queries without an answer. OtherPorts are the
	// queries to the second node whose source port differs from that of the same query
	// to the first.
	Queries    int `json:"queries"`
	Lost       int `json:"lost"`
	OtherPorts int `json:"other_ports"`

	// From the 10th second on.
	WorstPercent float64 `json:"worst_percent"`
	MeanPercent  float64 `json:"mean_percent"`

	ConntrackL ConntrackL `json:"conntrack_l"`

	// LeftOnUntracked is the highest number of clients' entries that was seen in the
	// table of the second node. There must be none.
	LeftOnUntracked int `json:"left_on_untracked"`

	Seconds []Second `json:"seconds"`
	// Skipped is the number of seconds that passed while an earlier one was counted.
	Skipped int `json:"skipped"`
}

// Second is one count of both.
type Second struct {
	Second int `json:"second"`
	// Kernel is the number of entries of clients in the first node's table.
	Kernel int `json:"kernel"`
	// Ledger is the number of entries that the second node says it avoids.
	Ledger float64 `json:"ledger"`
	// Moved is half of the change of that number while the table was read. The two may
	// differ by so much and agree.
	Moved float64 `json:"moved"`
	// Apart is how many entries more or fewer the clients of the second node should
	// have, by the clock of the clients: the flows that they had begun by then, less
	// those that had expired since their answer.
	Apart int `json:"apart"`
	// Percent is how far the ledger is off.
	Percent float64 `json:"percent"`

	counted time.Duration // since the beginning
}

// blur returns by how much the two may differ and agree.
func (s *Second) blur() float64 { return s.Moved + math.Abs(float64(s.Apart)) }

// percentOf returns a number in percent of the kernel's entries.
func (s *Second) percentOf(n float64) float64 { return 100 * math.Abs(n) / max(float64(s.Kernel), 1) }

// ConntrackL is the number of entries that the program conntrack lists, and our own counts
// before and after it.
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
		r.Disturbances = append(r.Disturbances, fmt.Sprintf("by second %d the numbers of queries to the two nodes differ by %.1f %%", at, worst))
	}
	if share := 100 * float64(r.Lost) / float64(r.Queries); share > lost {
		r.Disturbances = append(r.Disturbances, fmt.Sprintf("%.1f %% of the queries were lost", share))
	}
	if blurs > blurred {
		r.Disturbances = append(r.Disturbances, fmt.Sprintf("%d seconds were not counted, or the nodes differed in them, or changed meanwhile, by more than %.0f %%", blurs, everySecond))
	}
}

// course has the times at which clients asked a node, by their clock.
type course struct {
	queries times
	begun   times // flows
	over    times // expired entries
}

// times are durations since the beginning, sorted.
type times []time.Duration

// by returns how many there were by then.
func (t times) by(then time.Duration) int {
	n, _ := slices.BinarySearch(t, then+1)
	return n
}

// entries returns how many entries there should be.
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

// judge computes how far the two are apart and compares that with the bars.
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
		r.Failures = append(r.Failures, fmt.Sprintf("%d entries of clients on the node that must not track them", r.LeftOnUntracked))
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
