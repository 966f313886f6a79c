package top

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// A Grid is names with columns beside them.
type Grid struct {
	Title   string // of the names
	Columns []Column
	Rows    []GridRow
}

// A Column is right-aligned. The narrower the terminal, the fewer columns there are: those
// with the highest rank go first, and that of rank 0 stays.
type Column struct {
	Title       string
	Width, Rank int
}

// A GridRow has a cell for each column.
type GridRow struct {
	Name  string
	Cells []string
}

const (
	gap       = 2
	minName   = 24 // below it a column goes
	leastName = 8
)

// fitting returns the indexes of the columns that a width has room for, and how wide the name
// is.
func (g *Grid) fitting(width int) ([]int, int) {
	longest := utf8.RuneCountInString(g.Title)
	for _, r := range g.Rows {
		longest = max(longest, utf8.RuneCountInString(r.Name))
	}
	fit := make([]int, len(g.Columns))
	for i := range fit {
		fit[i] = i
	}
	if width <= 0 {
		return fit, longest
	}
	room := func() int {
		left := width
		for _, i := range fit {
			left -= g.Columns[i].Width + gap
		}
		return left
	}
	for len(fit) > 1 && room() < min(longest, minName) {
		last := slices.MaxFunc(fit, func(a, b int) int { return g.Columns[a].Rank - g.Columns[b].Rank })
		fit = slices.DeleteFunc(fit, func(i int) bool { return i == last })
	}
	return fit, max(min(longest, room()), leastName)
}

// Lines returns the header and the rows for a terminal of that width, 0 for any.
func (g *Grid) Lines(width int) []string {
	fit, name := g.fitting(width)
	var b strings.Builder
	line := func(first string, cell func(i int) string) string {
		b.Reset()
		shown := Shortened(first, name)
		b.WriteString(shown + strings.Repeat(" ", name-utf8.RuneCountInString(shown)))
		for _, i := range fit {
			fmt.Fprintf(&b, "%*s", g.Columns[i].Width+gap, cell(i))
		}
		return b.String()
	}
	lines := []string{line(g.Title, func(i int) string { return g.Columns[i].Title })}
	for _, r := range g.Rows {
		lines = append(lines, line(r.Name, func(i int) string { return r.Cells[i] }))
	}
	return lines
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
