package main

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"
)

// A table is a summary: a row for each node.
type table struct {
	header []string
	rows   [][]string
}

// writeTo writes columns side by side. A last column that is too wide is the
// terminal's matter.
func (t table) writeTo(b *bytes.Buffer) {
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{t.header}, t.rows...) {
		for i, cell := range row {
			row[i] = printable(cell, "")
		}
		_, _ = fmt.Fprintln(w, strings.Join(row, "\t")) // into a buffer
	}
	_ = w.Flush()
	trimmed := trailing(b.String())
	b.Reset()
	b.WriteString(trimmed)
}

// trailing takes the spaces off the ends of lines.
func trailing(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return b.String()
}

// writeText writes the summary, the nodes that did not answer, and the details.
func writeText(out io.Writer, summary table, answers []answer, details func(b *bytes.Buffer)) error {
	var b bytes.Buffer
	summary.writeTo(&b)
	for _, a := range answers {
		if a.Error != "" {
			fmt.Fprintf(&b, "\n%s: %s\n", a.Node, a.Error)
		}
	}
	details(&b)
	_, err := io.WriteString(out, printable(b.String(), "\n"))
	return err
}

// printable replaces what a terminal would not show, but obey. Names of pods and
// queries come from whoever runs on a node.
func printable(text, besides string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || strings.ContainsRune(besides, r) {
			return r
		}
		return unicode.ReplacementChar
	}, text)
}

// via names the way to a node.
func (a answer) via() string {
	switch {
	case a.Pod == "":
		return "-"
	case a.DebugPod:
		return "debug pod"
	}
	return a.Pod
}

// thousands writes 1234567 as 1,234,567.
func thousands(n uint64) string {
	text := strconv.FormatUint(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// share writes a part of a whole in percent.
func share(part, whole uint64) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}
