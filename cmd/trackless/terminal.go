package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// isTerminal reports whether the writer is a terminal.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

// coloured reports whether output is for a terminal that can show colour and
// wants it (https://no-color.org).
func coloured(out io.Writer) bool {
	return isTerminal(out) && !dumbTerminal() && os.Getenv("NO_COLOR") == ""
}

// dumbTerminal reports whether the terminal knows no escape sequences (term(7)).
func dumbTerminal() bool { return os.Getenv("TERM") == "dumb" }

// readableWidth is the longest line of running text.
const readableWidth = 90

// terminalWidth is the number of columns of a terminal, 0 for anything else and
// for one that does not say.
func terminalWidth(w io.Writer) int {
	file, ok := w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// textWidth is the width of running text on w.
func textWidth(w io.Writer) int {
	if width := terminalWidth(w); width > 0 {
		return min(width, readableWidth)
	}
	return readableWidth
}

// writeWrapped writes text behind a lead in lines of a width, further lines
// indented as far.
func writeWrapped(b *bytes.Buffer, width int, lead, text string) {
	column := utf8.RuneCountInString(lead)
	indent := column
	b.WriteString(lead)
	for i, word := range strings.Fields(text) {
		length := utf8.RuneCountInString(word)
		if i > 0 && column+1+length > width {
			fmt.Fprintf(b, "\n%*s", indent, "")
			column = indent
		} else if i > 0 {
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += length
	}
	b.WriteByte('\n')
}

// writeLine writes a line, wrapped where a terminal has a width.
func writeLine(b *bytes.Buffer, width int, text string) {
	if width == 0 {
		b.WriteString(text + "\n")
		return
	}
	writeWrapped(b, width, "", text)
}

// A textTable is a table whose last columns are running text. Where a terminal
// is too narrow for them each stands on lines of its own below its row.
type textTable struct {
	header []string // of all columns, nil for none
	rows   [][]string
	text   int    // how many of the columns are running text
	indent string // before each row
}

func (t *textTable) add(cells ...string) { t.rows = append(t.rows, cells) }

// write writes the table for a width, 0 for any.
func (t *textTable) write(b *bytes.Buffer, width int) {
	all := t.rows
	if t.header != nil {
		all = append([][]string{t.header}, t.rows...)
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
	total := len(t.indent)
	for _, w := range widths {
		total += w + gap
	}
	beside := len(widths)
	if width > 0 && total-gap > width {
		beside -= t.text
	}
	for n, row := range all {
		line := t.indent
		for i, cell := range row[:min(beside, len(row))] {
			line += fmt.Sprintf("%-*s", widths[i]+gap, cell)
		}
		b.WriteString(strings.TrimRight(line, " "))
		b.WriteByte('\n')
		if t.header != nil && n == 0 {
			continue
		}
		for i := beside; i < len(row); i++ {
			if strings.Trim(row[i], " -") == "" {
				continue
			}
			text := row[i]
			if t.header != nil && t.text > 1 {
				text = strings.ToLower(t.header[i]) + ": " + text
			}
			writeWrapped(b, width, t.indent+"    ", text)
		}
	}
}
