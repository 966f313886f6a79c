package top

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/trackless-dns/trackless/conntrack/groups"
	"github.com/trackless-dns/trackless/internal/figure"
)

// A Table is the groups of one reading.
type Table struct {
	By    groups.By
	Rows  []groups.Row
	Limit uint64 // 0: none
	// Per is the time since the reading before, 0 without one: nothing is new then.
	Per time.Duration
	// Sort is the column by which rows are sorted, "" for entries.
	Sort string
}

// The columns beside the name, by title.
const (
	colEntries   = "ENTRIES"
	colShare     = "OF LIMIT"
	colNew       = "NEW/s"
	colUnreplied = "UNREPLIED"
	colDNS       = "DNS"
)

// A column is right-aligned. The narrower the terminal, the fewer columns there are: those
// with the highest rank go first.
type column struct {
	title string
	width int
	rank  int
	text  func(*Table, *groups.Row) string
	value func(*groups.Row) uint64
}

func columns() []column {
	thousands := figure.Thousands[uint64]
	entries := func(r *groups.Row) uint64 { return r.Entries }
	return []column{
		{colEntries, 9, 0, func(_ *Table, r *groups.Row) string { return thousands(r.Entries) }, entries},
		{colShare, 8, 1, func(t *Table, r *groups.Row) string { return figure.Fill(r.Entries, t.Limit) }, entries},
		{colNew, 9, 2, (*Table).perSecond, func(r *groups.Row) uint64 { return r.New }},
		{colUnreplied, 9, 4, func(_ *Table, r *groups.Row) string { return thousands(r.Unreplied) }, func(r *groups.Row) uint64 { return r.Unreplied }},
		{colDNS, 9, 3, func(_ *Table, r *groups.Row) string { return thousands(r.DNS) }, func(r *groups.Row) uint64 { return r.DNS }},
	}
}

// sortable are the columns that differ in order.
var sortable = []string{colEntries, colNew, colUnreplied, colDNS}

func (t *Table) perSecond(r *groups.Row) string {
	if t.Per <= 0 {
		return "-"
	}
	return figure.Rate(float64(r.New) / t.Per.Seconds())
}

const (
	gap       = 2
	minName   = 24 // below it a column goes
	leastName = 8
)

// fitting returns the columns that a width has room for, and how wide the name is.
func (t *Table) fitting(width int) ([]column, int) {
	longest := utf8.RuneCountInString(t.By.String())
	for _, r := range t.Rows {
		longest = max(longest, utf8.RuneCountInString(r.Name))
	}
	fit := slices.DeleteFunc(columns(), func(c column) bool { return c.title == colNew && t.Per <= 0 })
	if width <= 0 {
		return fit, longest
	}
	room := func() int {
		left := width
		for _, c := range fit {
			left -= c.width + gap
		}
		return left
	}
	for len(fit) > 1 && room() < min(longest, minName) {
		last := slices.MaxFunc(fit, func(a, b column) int { return a.rank - b.rank })
		fit = slices.DeleteFunc(fit, func(c column) bool { return c.rank == last.rank })
	}
	return fit, max(min(longest, room()), leastName)
}

// Lines returns the header and the rows for a terminal of that width, 0 for any.
func (t *Table) Lines(width int) []string {
	fit, name := t.fitting(width)
	var b strings.Builder
	fmt.Fprintf(&b, "%-*s", name, strings.ToUpper(t.By.String()))
	for _, c := range fit {
		fmt.Fprintf(&b, "%*s", c.width+gap, c.title)
	}
	lines := []string{b.String()}
	for _, r := range t.sorted() {
		b.Reset()
		shown := Shortened(r.Name, name)
		b.WriteString(shown + strings.Repeat(" ", name-utf8.RuneCountInString(shown)))
		for _, c := range fit {
			fmt.Fprintf(&b, "%*s", c.width+gap, c.text(t, &r))
		}
		lines = append(lines, b.String())
	}
	return lines
}

// sorted returns the rows in order. groups.Rows has them by entries.
func (t *Table) sorted() []groups.Row {
	i := slices.IndexFunc(columns(), func(c column) bool { return c.title == t.Sort })
	if i < 0 {
		return t.Rows
	}
	value := columns()[i].value
	rows := slices.Clone(t.Rows)
	slices.SortStableFunc(rows, func(a, b groups.Row) int { return cmp.Compare(value(&b), value(&a)) })
	return rows
}

// Shortened returns a text of at most width characters. Where it is too long, its middle is
// left out: names of pods differ at both ends.
func Shortened(text string, width int) string {
	runes := []rune(text)
	if len(runes) <= width {
		return text
	}
	tail := (width - 1) / 2
	return string(runes[:width-1-tail]) + "…" + string(runes[len(runes)-tail:])
}
