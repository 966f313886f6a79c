// Package page writes a comparison as one HTML page that needs nothing else: no
// script, no network, charts as inline SVG. Its Content-Security-Policy allows
// its own style alone. The comparison's JSON is in the element #comparison.
package page

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"strings"

	"github.com/trackless-dns/trackless/node/compare"
	"github.com/trackless-dns/trackless/node/snapshot"
)

//go:embed page.html
var pageText string

//go:embed style.css
var style string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"format":     compare.Format,
	"difference": compare.FormatDifference,
	"ratio":      compare.FormatRatio,
	"entries":    func(n uint64) string { return compare.Format(compare.Entries, new(float64(n))) },
	"optional":   optional,
	"clock":      func(s compare.Side) string { return s.Time.UTC().Format("2006-01-02 15:04:05 UTC") },
	"percentage": func(n float64) string { return compare.Format(compare.Percent, &n) },
	"rate":       func(n *float64) string { return compare.Format(compare.PerSecond, n) },
	"number":     number,
	"text":       func(s string) string { return unbroken.Replace(s) },
}).Parse(pageText))

// unbroken keeps a unit on the line of its number.
var unbroken = strings.NewReplacer(" %", "\u00a0%", " s ", "\u00a0s ")

// Write writes the page.
func Write(w io.Writer, c *compare.Comparison) error {
	return pageTemplate.Execute(w, view{
		Comparison: c,
		Style:      template.CSS(style),
		Policy:     policy(),
		Tiles:      tiles(c),
		Groups:     groups(c),
		Courses:    courses(c),
		Shares:     shares(c),
		States:     stateBars(c),
		Losses:     lossBars(c),
	})
}

// view is what the template sees.
type view struct {
	*compare.Comparison
	Style   template.CSS
	Policy  string
	Tiles   []tile
	Groups  []group
	Courses []course
	Shares  []shareBar
	States  []barPair
	Losses  []barPair
}

// policy allows the page's style by its hash, data: for the empty icon that
// keeps browsers from asking for one, and nothing else.
func policy() string {
	hash := sha256.Sum256([]byte(style))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) +
		"'; img-src data:; base-uri 'none'; form-action 'none'"
}

// indexed is a figure with its place in the JSON.
type indexed struct {
	compare.Figure
	Index int
}

// tile is a figure that is shown large.
type tile struct {
	indexed
	Note string
}

func tiles(c *compare.Comparison) []tile {
	var list []tile
	for _, id := range []string{"dns_entries", "entries", "entries_avoided", "lost_per_second", "lost", "p99_us"} {
		for i, f := range c.Figures {
			if f.ID != id || f.Before == nil && f.After == nil {
				continue
			}
			t := tile{indexed: indexed{f, i}}
			switch {
			case f.Difference == nil || f.Ratio == nil:
			case *f.Difference == 0:
				t.Note = "as before"
			default:
				t.Note = fmt.Sprintf("%s (%s)", compare.FormatDifference(f.Unit, f.Difference), compare.FormatRatio(f.Ratio))
			}
			list = append(list, t)
		}
	}
	return list[:min(len(list), 4)]
}

// group is a part of the table of figures.
type group struct {
	Title   string
	Figures []indexed
}

func groups(c *compare.Comparison) []group {
	var list []group
	for _, g := range compare.Groups {
		out := group{Title: g.Title}
		for i, f := range c.Figures {
			if f.Group == g.ID && (f.Before != nil || f.After != nil) {
				out.Figures = append(out.Figures, indexed{f, i})
			}
		}
		if len(out.Figures) > 0 {
			list = append(list, out)
		}
	}
	return list
}

// shareBar is the table of one side, split.
type shareBar struct {
	Label string
	Side  string // in the JSON
	Total uint64
	Parts []sharePart
}

type sharePart struct {
	Class, Title, Field string
	Entries             uint64
	X, Width            float64 // in percent
	Percent             float64
}

// shares draws both tables to one scale, so that their lengths compare too.
func shares(c *compare.Comparison) []shareBar {
	var list []shareBar
	most := uint64(0)
	for _, side := range c.Sides() {
		if side.DNS != nil {
			most = max(most, side.DNS.Total())
		}
	}
	for _, side := range c.Sides() {
		if side.DNS == nil {
			continue
		}
		bar := shareBar{Label: side.Label, Side: side.Label, Total: side.DNS.Total()}
		x := 0.0
		for _, part := range []sharePart{
			{Class: "answered", Title: "DNS, answered", Field: "dns_answered", Entries: side.DNS.Answered},
			{Class: "unanswered", Title: "DNS, no answer yet", Field: "dns_unanswered", Entries: side.DNS.Unanswered},
			{Class: "reversed", Title: "DNS, answers first", Field: "dns_reversed", Entries: side.DNS.Reversed},
			{Class: "other", Title: "everything else", Field: "other", Entries: side.DNS.Other},
		} {
			part.X, part.Width = x, width(float64(part.Entries), float64(most))
			part.Percent = width(float64(part.Entries), float64(bar.Total))
			x += part.Width
			bar.Parts = append(bar.Parts, part)
		}
		list = append(list, bar)
	}
	return list
}

// barPair is a row of two bars.
type barPair struct {
	Title       string
	Unit        compare.Unit
	Before      *float64
	After       *float64
	Max         float64
	PathBefore  string // in the JSON, "" for a sum
	PathAfter   string
	Explanation string
}

// maxStates is the number of rows of the chart; the others are added up.
const maxStates = 12

func stateBars(c *compare.Comparison) []barPair {
	var list []barPair
	for i, s := range c.States {
		if i >= maxStates {
			break
		}
		list = append(list, barPair{
			Title: strings.TrimSpace(s.Protocol + " " + s.State), Unit: compare.Entries,
			Before: new(float64(s.Before)), After: new(float64(s.After)),
			PathBefore: fmt.Sprintf("states.%d.before", i), PathAfter: fmt.Sprintf("states.%d.after", i),
		})
	}
	if len(c.States) > maxStates {
		var before, after float64
		for _, s := range c.States[maxStates:] {
			before += float64(s.Before)
			after += float64(s.After)
		}
		list = append(list, barPair{Title: fmt.Sprintf("%d others", len(c.States)-maxStates), Unit: compare.Entries, Before: &before, After: &after})
	}
	return scaled(list)
}

func lossBars(c *compare.Comparison) []barPair {
	var list []barPair
	for i, k := range c.Counters {
		if k.Loss && (k.BeforePerSecond != nil || k.AfterPerSecond != nil) {
			list = append(list, barPair{
				Title: k.Name, Unit: compare.PerSecond, Before: k.BeforePerSecond, After: k.AfterPerSecond, Explanation: k.Meaning,
				PathBefore: fmt.Sprintf("counters.%d.before_per_second", i), PathAfter: fmt.Sprintf("counters.%d.after_per_second", i),
			})
		}
	}
	return scaled(list)
}

// scaled gives all rows the same scale.
func scaled(list []barPair) []barPair {
	most := 0.0
	for _, b := range list {
		most = max(most, value(b.Before), value(b.After))
	}
	for i := range list {
		list[i].Max = most
	}
	return list
}

// Bars are the two bars of a row.
func (b barPair) Bars() []bar {
	return []bar{
		{"before", b.Before, width(value(b.Before), b.Max), b.Unit, b.PathBefore},
		{"after", b.After, width(value(b.After), b.Max), b.Unit, b.PathAfter},
	}
}

type bar struct {
	Side  string
	Value *float64
	Width float64 // in percent
	Unit  compare.Unit
	Path  string
}

// width is a part in percent of the whole.
func width(part, whole float64) float64 {
	if whole == 0 {
		return 0
	}
	return 100 * part / whole
}

func value(n *float64) float64 {
	if n == nil {
		return 0
	}
	return *n
}

func optional(n *uint64) string {
	if n == nil {
		return compare.NotMeasured
	}
	return compare.Format(compare.Entries, new(float64(*n)))
}

// course is a chart over the time of the windows.
type course struct {
	ID, Title, Text string
	Top             float64   // of the y axis
	Ticks           []string  // of the y axis, from the top
	XTicks          []string  // of the x axis
	Lines           []line    // in the order of the legend
	Slices          []slice   // what the pointer shows
	Limit           *float64  // y in the drawing, if the limit is near
	Grid            []float64 // y in the drawing
	Empty           bool
}

// series are the numbers of one line.
type series struct {
	class, title, path string
	samples            []snapshot.Sample
	of                 func(snapshot.Sample) *float64
}

func courses(c *compare.Comparison) []course {
	entries := func(s snapshot.Sample) *float64 { return new(float64(s.Entries)) }
	dns := func(s snapshot.Sample) *float64 { return asFloat(s.DNSEntries) }
	kept := func(s snapshot.Sample) *float64 { return asFloat(s.EntriesAvoided) }
	limit := 0.0
	if f := c.Figure("limit"); f != nil && f.Before != nil && f.After != nil && *f.Before == *f.After {
		limit = *f.After
	}
	b, a := c.Before.Samples, c.After.Samples
	return []course{
		draw("entries", "Entries in the table", limit, []series{
			{"before", "before", "before.entries", b, entries},
			{"after", "after", "after.entries", a, entries},
		}),
		draw("dns", "Entries of DNS", 0, []series{
			{"before", "before", "before.dns_entries", b, dns},
			{"after", "after", "after.dns_entries", a, dns},
			{"before avoided", "kept out by Trackless, before", "before.entries_avoided", b, kept},
			{"after avoided", "kept out by Trackless, after", "after.entries_avoided", a, kept},
		}),
	}
}

func asFloat(n *uint64) *float64 {
	if n == nil {
		return nil
	}
	return new(float64(*n))
}

// number writes a coordinate, or a time in seconds.
func number(n any) string {
	switch v := n.(type) {
	case *float64:
		return fmt.Sprintf("%.2f", value(v))
	case float64:
		return fmt.Sprintf("%.2f", v)
	}
	return ""
}
