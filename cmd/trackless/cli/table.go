package cli

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

// A TextTable is a table whose last columns are running text. Where a terminal
// is too narrow for them each stands on lines of its own below its row.
type TextTable struct {
	Header []string // of all columns, nil for none
	rows   [][]string
	Text   int    // how many of the columns are running text
	Indent string // before each row
}

// Add appends a row.
func (t *TextTable) Add(cells ...string) { t.rows = append(t.rows, cells) }

// Write writes the table for a width, 0 for any.
func (t *TextTable) Write(b *bytes.Buffer, width int) {
	all := t.rows
	if t.Header != nil {
		all = append([][]string{t.Header}, t.rows...)
	}
	var widths []int
	for _, row := range all {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	const gap = 2
	total := len(t.Indent)
	for _, w := range widths {
		total += w + gap
	}
	beside := len(widths)
	if width > 0 && total-gap > width {
		beside -= t.Text
	}
	for n, row := range all {
		line := t.Indent
		for i, cell := range row[:min(beside, len(row))] {
			line += fmt.Sprintf("%-*s", widths[i]+gap, cell)
		}
		b.WriteString(strings.TrimRight(line, " "))
		b.WriteByte('\n')
		if t.Header != nil && n == 0 {
			continue
		}
		for i := beside; i < len(row); i++ {
			if strings.Trim(row[i], " -") == "" {
				continue
			}
			text := row[i]
			if t.Header != nil && t.Text > 1 {
				text = strings.ToLower(t.Header[i]) + ": " + text
			}
			WriteWrapped(b, width, t.Indent+"    ", text)
		}
	}
}
