package main

import (
	"fmt"
	"time"

	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/lab/experiment"
	"github.com/trackless-dns/trackless/node/compare"
	"github.com/trackless-dns/trackless/node/snapshot"
)

// compareLab makes of the two phases of a lab what `trackless compare` makes of
// two snapshots.
func compareLab(r *experiment.Report) *compare.Comparison {
	before, after := labSnapshot(r, &r.Before), labSnapshot(r, &r.After)
	after.Rules = &snapshot.Rules{Instances: []snapshot.Instance{{Backend: "nftables", State: "attached", Version: version}}}
	c := compare.Snapshots(before, after)
	c.Title = fmt.Sprintf("%s DNS queries through kube-proxy, and with Trackless", figure.Thousands(uint64(r.Before.Queries)))
	if r.FillerEntries > 0 {
		c.Title += ", on a full table"
	}
	for _, p := range r.Promises {
		c.Checks = append(c.Checks, compare.Check{Text: p.Text, Found: p.Found, Kept: p.Kept})
	}
	c.Figures = append(c.Figures, labFigures(r)...)
	c.Verdict = labVerdict(r, c.Verdict)
	return c
}

// labSnapshot is the node of a phase when its load was over.
func labSnapshot(r *experiment.Report, p *experiment.Phase) *snapshot.Snapshot {
	s := &snapshot.Snapshot{
		Schema: snapshot.Schema, Time: p.Ended,
		Node:     snapshot.Node{Name: "lab"},
		Versions: snapshot.Versions{Trackless: version, CoreDNS: coreDNSVersion()},
		Samples:  []snapshot.Sample{},
	}
	if node, err := snapshot.ReadNode("/", "lab"); err == nil {
		s.Node.Kernel, s.Node.CPUs, s.Node.Architecture = node.Kernel, node.CPUs, node.Architecture
	}
	s.Table.Entries, s.Table.Limit = uint64(p.EntriesEnd), uint64(r.TableLimit)
	s.Table.FillPercent = figure.Percent(s.Table.Entries, s.Table.Limit)
	s.Table.SetSummary(p.Table)
	duration := time.Duration(p.DurationMS) * time.Millisecond
	if duration > 0 {
		s.SentPerSecond = new(float64(p.Queries) / duration.Seconds())
	}
	for _, sample := range p.Course {
		point := snapshot.Sample{Seconds: sample.Seconds, Entries: uint64(sample.Entries), DNSEntries: new(uint64(sample.Port53Entries))}
		if sample.EntriesAvoided != nil {
			point.EntriesAvoided = new(uint64(*sample.EntriesAvoided))
			s.Ledger = &snapshot.Ledger{Instances: 1, EntriesAvoided: *point.EntriesAvoided}
		}
		s.Samples = append(s.Samples, point)
		s.WindowSeconds = sample.Seconds
	}
	for _, k := range p.Counters {
		counter := snapshot.Counter{Name: k.Name, Total: k.Value, Loss: k.Loss}
		if s.WindowSeconds > 0 {
			counter.PerSecond = new(float64(k.Value) / s.WindowSeconds)
		}
		s.Counters = append(s.Counters, counter)
	}
	return s
}

func labFigures(r *experiment.Report) []compare.Figure {
	figure := func(id, title string, unit compare.Unit, of func(*experiment.Phase) float64) compare.Figure {
		return compare.NewFigure("queries", id, title, unit, new(of(&r.Before)), new(of(&r.After)))
	}
	return []compare.Figure{
		figure("queries", "Queries, one attempt each", compare.Queries, func(p *experiment.Phase) float64 { return float64(p.Queries) }),
		figure("answered", "Answered", compare.Queries, func(p *experiment.Phase) float64 { return float64(p.Answered) }),
		figure("lost", "Lost", compare.Queries, func(p *experiment.Phase) float64 { return float64(p.Lost) }),
		figure("p50_us", "Time to answer, median", compare.Microseconds, func(p *experiment.Phase) float64 { return float64(p.P50) }),
		figure("p99_us", "Time to answer, 99 of 100 within", compare.Microseconds, func(p *experiment.Phase) float64 { return float64(p.P99) }),
		figure("upstream_queries", "Queries that reached kube-dns", compare.Queries, func(p *experiment.Phase) float64 { return float64(p.UpstreamQueries) }),
	}
}

// labVerdict is that of the snapshots, except on a full table: there it counts
// who gets an answer, since nobody gets an entry.
func labVerdict(r *experiment.Report, v compare.Verdict) compare.Verdict {
	if r.Scenario == experiment.Exhaustion {
		v.Outcome = compare.Unchanged
		if r.After.Answered > r.Before.Answered {
			v.Outcome = compare.Improved
		} else if r.After.Answered < r.Before.Answered {
			v.Outcome = compare.Worse
		}
		v.Sentence = fmt.Sprintf("On a full table, Trackless answers %s of %s queries; through kube-proxy %s are.",
			figure.Thousands(uint64(r.After.Answered)), figure.Thousands(uint64(r.After.Queries)), answeredOf(r.Before.Answered))
	}
	if !r.Kept {
		v.Sentence += " Not every promise was kept."
	}
	return v
}

func answeredOf(n int) string {
	if n == 0 {
		return "none"
	}
	return figure.Thousands(uint64(n))
}
