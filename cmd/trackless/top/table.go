package top

import (
	"cmp"
	"slices"
	"strings"
	"time"

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

// Lines returns the header and the rows for a terminal of that width, 0 for any.
func (t *Table) Lines(width int) []string {
	g := Grid{Title: strings.ToUpper(t.By.String())}
	all := slices.DeleteFunc(columns(), func(c column) bool { return c.title == colNew && t.Per <= 0 })
	for _, c := range all {
		g.Columns = append(g.Columns, Column{c.title, c.width, c.rank})
	}
	for _, r := range t.sorted() {
		row := GridRow{Name: r.Name}
		for _, c := range all {
			row.Cells = append(row.Cells, c.text(t, &r))
		}
		g.Rows = append(g.Rows, row)
	}
	return g.Lines(width)
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
