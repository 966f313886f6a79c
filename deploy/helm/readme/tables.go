package main

import (
	"bytes"
	"fmt"
	"strings"
)

// tables writes a table for each section.
func tables(sections []section) []byte {
	var b bytes.Buffer
	for _, s := range sections {
		fmt.Fprintf(&b, "\n### %s\n\n| value | type | default | |\n|---|---|---|---|\n", s.title)
		for _, r := range s.rows {
			fmt.Fprintf(&b, "| `%s` | %s | `%s` | %s |\n", r.path, r.kind, r.standard, cell(r.about))
		}
	}
	b.WriteByte('\n')
	return b.Bytes()
}

// cell keeps a text within its column.
func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }
