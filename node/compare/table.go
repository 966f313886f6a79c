package compare

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Groups are the groups of figures in their order, with their titles.
var Groups = []struct{ ID, Title string }{
	{"queries", "Queries"},
	{"dns", "DNS in the table"},
	{"table", "The table"},
	{"load", "Load, a second"},
	{"loss", "Loss, a second"},
}

// WriteTable writes the comparison for people. paint marks the outcome, a
// warning ("warning") and the checks; it may return the text as it is.
func (c *Comparison) WriteTable(out io.Writer, paint func(kind, text string) string) error {
	var b strings.Builder
	for _, s := range []Side{c.Before, c.After} {
		fmt.Fprintf(&b, "%-7s %s  %s, %s, Trackless %s\n", s.Label, s.Time.UTC().Format("2006-01-02 15:04:05 UTC"), s.Node.Name, window(s), attachment(s))
	}
	b.WriteByte('\n')
	writeWrapped(&b, paint(string(c.Verdict.Outcome), strings.ToUpper(string(c.Verdict.Outcome))), utf8.RuneCountInString(string(c.Verdict.Outcome)), c.Verdict.Sentence)
	for _, w := range c.Remarks() {
		writeWrapped(&b, paint("warning", "warning"), len("warning"), w.Text)
	}
	for _, check := range c.Checks {
		mark, kind := "kept", string(Improved)
		if !check.Kept {
			mark, kind = "BROKEN", string(Worse)
		}
		writeWrapped(&b, paint(kind, mark), len(mark), check.Text+": "+check.Found)
	}
	b.WriteByte('\n')
	writeColumns(&b, c.rows())
	_, err := io.WriteString(out, b.String())
	return err
}

func window(s Side) string {
	if s.WindowSeconds == 0 {
		return "read once"
	}
	return fmt.Sprintf("%.0f s", s.WindowSeconds)
}

func attachment(s Side) string {
	if s.Attached {
		return "attached"
	}
	return "not attached"
}

func (c *Comparison) rows() [][]string {
	rows := [][]string{{"", "before", "after", "difference", "ratio"}}
	for _, g := range Groups {
		title := false
		for _, f := range c.Figures {
			if f.Group != g.ID || f.Before == nil && f.After == nil {
				continue
			}
			if !title {
				rows = append(rows, []string{strings.ToUpper(g.Title)})
				title = true
			}
			rows = append(rows, []string{"  " + f.Title, f.Text(f.Before), f.Text(f.After), FormatDifference(f.Unit, f.Difference), FormatRatio(f.Ratio)})
		}
	}
	if len(c.States) > 0 {
		rows = append(rows, []string{"PROTOCOL AND STATE"})
		for _, s := range c.States {
			f := NewFigure("", "", "", Entries, count(s.Before), count(s.After))
			rows = append(rows, []string{"  " + strings.TrimSpace(s.Protocol+" "+s.State), Format(Entries, f.Before), Format(Entries, f.After), FormatDifference(Entries, f.Difference), FormatRatio(f.Ratio)})
		}
	}
	if len(c.Counters) > 0 {
		rows = append(rows, []string{"KERNEL COUNTERS", "a second", "a second", "between", ""})
		for _, k := range c.Counters {
			if !k.Loss && valueOf(k.BeforePerSecond) == 0 && valueOf(k.AfterPerSecond) == 0 {
				continue
			}
			between := NotMeasured
			if k.Between != nil {
				between = Format(Entries, count(*k.Between))
			}
			rows = append(rows, []string{"  " + k.Name, Format(PerSecond, k.BeforePerSecond), Format(PerSecond, k.AfterPerSecond), between, ""})
		}
	}
	if len(c.Settings) > 0 {
		rows = append(rows, []string{"SETTINGS THAT DIFFER"})
		for _, s := range c.Settings {
			rows = append(rows, []string{"  " + s.Name, setting(s.Before), setting(s.After), "", ""})
		}
	}
	return rows
}

func setting(v *uint64) string {
	if v == nil {
		return NotMeasured
	}
	return fmt.Sprint(*v)
}

// writeColumns writes the first column flush left, the others flush right.
func writeColumns(b *strings.Builder, rows [][]string) {
	var widths [5]int
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		line := fmt.Sprintf("%-*s", widths[0], row[0])
		for i, cell := range row[1:] {
			line += fmt.Sprintf("  %*s", widths[i+1], cell)
		}
		b.WriteString(strings.TrimRight(line, " "))
		b.WriteByte('\n')
	}
}

// writeWrapped writes text behind a lead of so many columns.
func writeWrapped(b *strings.Builder, lead string, columns int, text string) {
	const indent, width = 11, 96
	b.WriteString(lead + strings.Repeat(" ", max(1, indent-columns)))
	column := indent
	for i, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		if i > 0 && column+1+n > width {
			b.WriteString("\n" + strings.Repeat(" ", indent))
			column = indent
		} else if i > 0 {
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += n
	}
	b.WriteByte('\n')
}
