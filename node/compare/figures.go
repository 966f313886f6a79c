package compare

import (
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/node/snapshot"
)

// Unit says what a figure counts, and so how it is written.
type Unit string

// The units of figures.
const (
	Entries      Unit = "entries"
	Percent      Unit = "percent"
	Bytes        Unit = "bytes"
	PerSecond    Unit = "per second"
	Queries      Unit = "queries"
	Microseconds Unit = "microseconds"
)

func (p pair) figures() []Figure {
	var list []Figure
	add := func(group, id, title string, unit Unit, of func(*snapshot.Snapshot) *float64) {
		list = append(list, NewFigure(group, id, title, unit, of(p.before), of(p.after)))
	}
	add("table", "entries", "Entries in the table", Entries, func(s *snapshot.Snapshot) *float64 { return count(s.Table.Entries) })
	add("table", limitFigure, "Limit of the table", Entries, func(s *snapshot.Snapshot) *float64 { return count(s.Table.Limit) })
	add("table", "fill_percent", "How full it is", Percent, func(s *snapshot.Snapshot) *float64 {
		if s.Table.Limit == 0 {
			return nil // there is no limit
		}
		return new(s.Table.FillPercent)
	})
	add("table", "memory_bytes", "Memory of the table", Bytes, func(s *snapshot.Snapshot) *float64 {
		if s.Table.MemoryBytes == 0 {
			return nil // the lab does not say
		}
		return count(s.Table.MemoryBytes)
	})
	add("dns", "dns_entries", "Entries of DNS", Entries, dnsEntries)
	add("dns", "dns_percent", "Share of DNS", Percent, func(s *snapshot.Snapshot) *float64 { return s.Table.DNSPercent })
	add("dns", "dns_unreplied", "DNS without an answer", Entries, func(s *snapshot.Snapshot) *float64 {
		if s.Table.Summary == nil {
			return nil
		}
		return count(s.Table.Summary.DNS.Unreplied)
	})
	add("dns", "entries_avoided", "Entries that Trackless keeps out", Entries, avoided)
	add("load", "new_flows_per_second", "New entries", PerSecond, func(s *snapshot.Snapshot) *float64 {
		if s.NewFlows == nil {
			return nil
		}
		return new(s.NewFlows.PerSecond)
	})
	add("load", "dns_flows_per_second", "New entries of DNS", PerSecond, func(s *snapshot.Snapshot) *float64 {
		if s.NewFlows == nil {
			return nil
		}
		return new(s.NewFlows.DNSPerSecond)
	})
	add("load", "flows_avoided_per_second", "DNS flows that made no entry", PerSecond, func(s *snapshot.Snapshot) *float64 {
		if s.Ledger == nil {
			return nil
		}
		return s.Ledger.FlowsPerSecond
	})
	add("load", "dns_load_per_second", "Load: DNS flows, tracked or not", PerSecond, load)
	add("load", "search_percent", "Share of the search path in queries", Percent, func(s *snapshot.Snapshot) *float64 {
		if s.Search == nil {
			return nil
		}
		return s.Search.SearchPercent
	})
	add("load", "search_saved_per_second", "Queries that the search path did not cost", PerSecond, func(s *snapshot.Snapshot) *float64 {
		if s.Search == nil {
			return nil
		}
		return s.Search.SavedPerSecond
	})
	add("loss", "lost_per_second", "Packets and entries lost to the table", PerSecond, lost)
	return list
}

// limitFigure is the figure whose 0 means no limit.
const limitFigure = "limit"

// NoLimit is what is written in place of a limit that there is not.
const NoLimit = "no limit"

// Text writes one of the figure's values.
func (f Figure) Text(n *float64) string {
	if f.ID == limitFigure && n != nil && *n == 0 {
		return NoLimit
	}
	return Format(f.Unit, n)
}

// NewFigure makes a figure with its difference and ratio.
func NewFigure(group, id, title string, unit Unit, before, after *float64) Figure {
	f := Figure{ID: id, Group: group, Title: title, Unit: unit, Before: before, After: after}
	withoutLimit := before != nil && after != nil && id == limitFigure && (*before == 0 || *after == 0)
	if before != nil && after != nil && !withoutLimit {
		f.Difference = new(*after - *before)
		if *before != 0 {
			f.Ratio = new(*after / *before)
		}
	}
	return f
}

func count(n uint64) *float64 { return new(float64(n)) }

func dnsEntries(s *snapshot.Snapshot) *float64 {
	if s.Table.Summary == nil {
		return nil
	}
	return count(s.Table.Summary.DNS.Entries)
}

func avoided(s *snapshot.Snapshot) *float64 {
	if s.Ledger == nil {
		return nil
	}
	return count(s.Ledger.EntriesAvoided)
}

// load is the number of DNS flows a second: those that made an entry, and those
// that would have made one without Trackless. It is nil if either is unknown.
func load(s *snapshot.Snapshot) *float64 {
	if s.SentPerSecond != nil {
		return s.SentPerSecond
	}
	if s.NewFlows == nil {
		return nil
	}
	sum := s.NewFlows.DNSPerSecond
	switch {
	case s.Ledger != nil && s.Ledger.FlowsPerSecond != nil:
		sum += *s.Ledger.FlowsPerSecond
	case untrackedUnseen(s):
		return nil
	}
	return &sum
}

// untrackedUnseen reports whether DNS is untracked here that nobody counts.
func untrackedUnseen(s *snapshot.Snapshot) bool {
	if len(s.Attached()) > 0 {
		return true
	}
	for _, l := range s.Listeners {
		if l.QueriesUntracked != nil && *l.QueriesUntracked {
			return true
		}
	}
	return false
}

// lost is the rate of everything that was lost to the table. Packets of
// insert_failed are in drop, too, and count once.
func lost(s *snapshot.Snapshot) *float64 {
	var sum, dropped float64
	known := false
	for _, c := range s.Counters {
		if !c.Loss || c.PerSecond == nil {
			continue
		}
		known = true
		if c.Name == "drop" || c.Name == "insert_failed" {
			dropped = max(dropped, *c.PerSecond)
		} else {
			sum += *c.PerSecond
		}
	}
	if !known {
		return nil
	}
	return new(sum + dropped)
}

func (p pair) counters() []Counter {
	meaning := map[string]string{}
	for _, c := range new(conntrack.CPUStats).Counters() {
		meaning[c.Name] = c.Meaning
	}
	list := []Counter{}
	for _, c := range append(append([]snapshot.Counter{}, p.before.Counters...), p.after.Counters...) {
		if indexCounter(list, c.Name) >= 0 {
			continue
		}
		row := Counter{Name: c.Name, Meaning: meaning[c.Name], Loss: c.Loss}
		if b := p.before.Counter(c.Name); b != nil {
			row.BeforeTotal, row.BeforePerSecond = new(b.Total), b.PerSecond
		}
		if a := p.after.Counter(c.Name); a != nil {
			row.AfterTotal, row.AfterPerSecond = new(a.Total), a.PerSecond
		}
		if row.BeforeTotal != nil && row.AfterTotal != nil && *row.AfterTotal >= *row.BeforeTotal && p.sameCounters() {
			row.Between = new(*row.AfterTotal - *row.BeforeTotal)
		}
		list = append(list, row)
	}
	return list
}

func indexCounter(list []Counter, name string) int {
	for i := range list {
		if list[i].Name == name {
			return i
		}
	}
	return -1
}
