// Package compare says what changed between two snapshots of a connection
// tracking table, and whether anything can be concluded from it.
package compare

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/node/snapshot"
)

// Schema names the version of a Comparison's JSON. Within it fields are added,
// never renamed.
const Schema = "trackless.comparison/v1"

// A Comparison is two snapshots side by side.
type Comparison struct {
	Schema   string    `json:"schema"`
	Title    string    `json:"title"`
	Before   Side      `json:"before"`
	After    Side      `json:"after"`
	Verdict  Verdict   `json:"verdict"`
	Warnings []Warning `json:"warnings"`
	// Checks are promises that somebody made about the two; `trackless lab`
	// does.
	Checks   []Check   `json:"checks,omitempty"`
	Figures  []Figure  `json:"figures"`
	States   []State   `json:"states"`
	Counters []Counter `json:"counters"`
	// Settings are those that differ.
	Settings []Setting `json:"settings"`
}

// Side is one of the two.
type Side struct {
	Label         string            `json:"label"`
	Time          time.Time         `json:"time"`
	WindowSeconds float64           `json:"window_seconds"`
	Node          snapshot.Node     `json:"node"`
	Versions      snapshot.Versions `json:"versions"`
	// Attached: rules of a Trackless are in force.
	Attached bool `json:"attached"`
	// DNS splits the entries, nil if they were not read.
	DNS     *Share            `json:"dns,omitempty"`
	Samples []snapshot.Sample `json:"samples"`
	Missing []string          `json:"missing,omitempty"`
}

// Share splits the entries of a table by what they have to do with DNS.
type Share struct {
	Answered uint64 `json:"dns_answered"`
	// Unanswered are entries of queries without an answer yet, Reversed those
	// that an answer made whose query was not tracked.
	Unanswered uint64 `json:"dns_unanswered"`
	Reversed   uint64 `json:"dns_reversed"`
	Other      uint64 `json:"other"`
}

// Total is the number of entries.
func (s *Share) Total() uint64 { return s.Answered + s.Unanswered + s.Reversed + s.Other }

// Warning is something that makes the comparison worth less.
type Warning struct {
	// ID is stable.
	ID   string `json:"id"`
	Text string `json:"text"`
	// Undermines: the verdict cannot stand on these two snapshots, and says so.
	Undermines bool `json:"undermines"`
}

// Remarks are the warnings that the verdict's sentence does not name.
func (c *Comparison) Remarks() []Warning {
	return slices.DeleteFunc(slices.Clone(c.Warnings), func(w Warning) bool { return w.Undermines })
}

// Check is a promise and whether it held.
type Check struct {
	Text  string `json:"text"`
	Found string `json:"found"`
	Kept  bool   `json:"kept"`
}

// Figure is a number on both sides; nil where it was not measured.
type Figure struct {
	// ID is stable, Group one of table, dns, load, loss and queries.
	ID     string   `json:"id"`
	Group  string   `json:"group"`
	Title  string   `json:"title"`
	Unit   Unit     `json:"unit"`
	Before *float64 `json:"before"`
	After  *float64 `json:"after"`
	// Difference is After less Before, Ratio After by Before: nil where a side
	// is, the ratio also where Before is 0.
	Difference *float64 `json:"difference"`
	Ratio      *float64 `json:"ratio"`
}

// State counts the entries of a protocol in a state.
type State struct {
	Protocol string `json:"protocol"`
	State    string `json:"state"`
	Before   uint64 `json:"before"`
	After    uint64 `json:"after"`
}

// Counter is a counter of the kernel on both sides; nil where it was not read.
type Counter struct {
	Name            string   `json:"name"`
	Meaning         string   `json:"meaning"`
	Loss            bool     `json:"loss"`
	BeforeTotal     *uint64  `json:"before_total"`
	AfterTotal      *uint64  `json:"after_total"`
	BeforePerSecond *float64 `json:"before_per_second"`
	AfterPerSecond  *float64 `json:"after_per_second"`
	// Between is the rise from one snapshot to the other; nil if the counters
	// began at 0 again in between, or are another namespace's.
	Between *uint64 `json:"between"`
}

// Setting is a setting that differs; nil where a side has none of that name.
type Setting struct {
	Name   string  `json:"name"`
	Before *uint64 `json:"before"`
	After  *uint64 `json:"after"`
}

// Snapshots compares two snapshots.
func Snapshots(before, after *snapshot.Snapshot) *Comparison {
	p := pair{before, after}
	c := &Comparison{
		Schema: Schema, Title: "Connection tracking and DNS, before and after",
		Before: side("before", before), After: side("after", after),
		Figures: p.figures(), States: p.states(), Counters: p.counters(), Settings: p.settings(),
	}
	c.Warnings = p.warnings()
	c.Verdict = p.verdict(c.Warnings)
	return c
}

// Figure returns the figure of that ID, nil if there is none.
func (c *Comparison) Figure(id string) *Figure {
	for i := range c.Figures {
		if c.Figures[i].ID == id {
			return &c.Figures[i]
		}
	}
	return nil
}

func side(label string, s *snapshot.Snapshot) Side {
	out := Side{
		Label: label, Time: s.Time, WindowSeconds: s.WindowSeconds, Node: s.Node, Versions: s.Versions,
		Attached: len(s.Attached()) > 0, Samples: s.Samples, Missing: s.Missing,
	}
	if t := s.Table.Summary; t != nil {
		out.DNS = share(t)
	}
	return out
}

func share(t *summary.Summary) *Share {
	s := &Share{Other: less(t.Entries, t.DNS.Entries), Reversed: t.DNS.Reversed}
	// A reversed entry without a reply is among the unreplied ones: what made
	// it was an answer, so it is no unanswered query.
	s.Unanswered = less(t.DNS.Unreplied, min(t.DNS.Unreplied, t.DNS.Reversed))
	s.Answered = less(t.DNS.Entries, s.Unanswered+s.Reversed)
	return s
}

// less is a less b, 0 if that is negative.
func less(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

// pair is what is compared.
type pair struct{ before, after *snapshot.Snapshot }

func (p pair) states() []State {
	rows := map[[2]string]*State{}
	add := func(s *snapshot.Snapshot, to func(*State) *uint64) {
		if s.Table.Summary == nil {
			return
		}
		for _, c := range s.Table.Summary.States {
			key := [2]string{c.Protocol, c.State}
			if rows[key] == nil {
				rows[key] = &State{Protocol: c.Protocol, State: c.State}
			}
			*to(rows[key]) += c.Entries
		}
	}
	add(p.before, func(s *State) *uint64 { return &s.Before })
	add(p.after, func(s *State) *uint64 { return &s.After })
	list := make([]State, 0, len(rows))
	for _, row := range rows {
		list = append(list, *row)
	}
	slices.SortFunc(list, func(a, b State) int {
		return cmp.Or(cmp.Compare(b.Before+b.After, a.Before+a.After), strings.Compare(a.Protocol, b.Protocol), strings.Compare(a.State, b.State))
	})
	return list
}

func (p pair) settings() []Setting {
	names := slices.Sorted(maps.Keys(p.before.Settings))
	for name := range p.after.Settings {
		if _, ok := p.before.Settings[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	list := []Setting{}
	for _, name := range names {
		b, inBefore := p.before.Settings[name]
		a, inAfter := p.after.Settings[name]
		if len(p.before.Settings) == 0 || len(p.after.Settings) == 0 || inBefore && inAfter && a == b {
			continue
		}
		s := Setting{Name: name}
		if inBefore {
			s.Before = new(b)
		}
		if inAfter {
			s.After = new(a)
		}
		list = append(list, s)
	}
	return list
}

// sameCounters reports whether both sides read the same counters: those of one
// boot and one namespace.
func (p pair) sameCounters() bool {
	b, a := p.before.Node, p.after.Node
	return b.BootID != "" && b.BootID == a.BootID && b.NetworkNamespace == a.NetworkNamespace
}

// Sides are both sides, in their order.
func (c *Comparison) Sides() []Side { return []Side{c.Before, c.After} }

// Window is WindowSeconds as a figure.
func (s Side) Window() *float64 { return &s.WindowSeconds }
