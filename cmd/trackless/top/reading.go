package top

import (
	"slices"
	"time"

	"github.com/trackless-dns/trackless/conntrack/groups"
	"github.com/trackless-dns/trackless/internal/figure"
)

// A Reading is what one pass over the table found.
type Reading struct {
	At      time.Time
	Entries uint64 // the kernel's count
	Limit   uint64 // 0: none
	Total   groups.Counts
	// Rows are by each groups.By.
	Rows map[groups.By][]groups.Row
	// Per is the time since the reading before, 0 at the first.
	Per time.Duration
	// Avoided are the DNS entries that instances of Trackless here keep out of the table,
	// nil where there are none.
	Avoided *uint64
	// Names says where names are from. Problem is what is wrong with this reading, if
	// anything.
	Names, Problem string
}

// OfTable is a screen for readings of the connection tracking table, by this group first.
func OfTable(by groups.By) Screen {
	return Screen{
		Title: "trackless conntrack top", Waiting: "reading the table ...",
		Ways: groups.Words(), By: slices.Index(groups.All(), by), Sorts: sortable,
	}
}

// Page returns the reading for a screen of OfTable.
func (r Reading) Page() Page {
	return Page{At: r.At, Summary: r.summary(), Problem: r.Problem, Table: func(v View) []string {
		by := groups.All()[v.By]
		t := Table{By: by, Limit: r.Limit, Per: r.Per, Sort: sortable[v.Sort]}
		for _, row := range r.Rows[by] {
			if v.Has(row.Name) {
				t.Rows = append(t.Rows, row)
			}
		}
		return t.Lines(v.Width)
	}}
}

// summary is the whole table in a few words.
func (r Reading) summary() []string {
	parts := []string{figure.Entries(r.Entries, r.Limit)}
	if r.Limit > 0 {
		parts[0] += " (" + figure.Fill(r.Entries, r.Limit) + ")"
	}
	if r.Per > 0 {
		t := Table{Per: r.Per}
		parts = append(parts, t.perSecond(&groups.Row{Counts: r.Total})+" new/s")
	}
	parts = append(parts, figure.Thousands(r.Total.Unreplied)+" unreplied", figure.Thousands(r.Total.DNS)+" DNS")
	if r.Avoided != nil {
		parts = append(parts, figure.Thousands(*r.Avoided)+" DNS avoided")
	}
	return append(parts, r.Names)
}
