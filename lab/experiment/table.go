package experiment

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/trackless-dns/trackless/lab"
)

// WriteTable writes the report for people. Colour marks kept and broken
// promises with ANSI escape sequences.
func (r *Report) WriteTable(out io.Writer, colour bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s queries from %d pods and the node itself, %s a second, seed %d, one attempt each\n",
		lab.Grouped(r.Before.Queries), r.Pods, lab.Grouped(r.RatePerSecond), r.Seed)
	if r.FillerEntries > 0 {
		fmt.Fprintf(&b, "on a node whose conntrack table was filled to its limit of %s entries\n", lab.Grouped(r.TableLimit))
	}
	b.WriteByte('\n')
	writeColumns(&b, r.rows())
	b.WriteByte('\n')
	writePromises(&b, r.Promises, colour)
	if r.Scenario == Exhaustion {
		b.WriteString("\nA miss needs a flow to kube-dns that a full table cannot track, so it may be lost either way.\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func writePromises(b *strings.Builder, promises []Promise, colour bool) {
	for _, promise := range promises {
		mark := paint("kept  ", "32", colour)
		if !promise.Kept {
			mark = paint("BROKEN", "1;31", colour)
		}
		fmt.Fprintf(b, "%s  %s: %s\n", mark, promise.Text, promise.Found)
	}
}

func (r *Report) rows() [][]string {
	before, after := &r.Before, &r.After
	number := func(text string, of func(*Phase) int) []string {
		return []string{text, lab.Grouped(of(before)), lab.Grouped(of(after))}
	}
	rows := [][]string{
		{"", "before", "after"},
		{"", "kube-proxy", "trackless"},
		{"answered by", responders(before), responders(after)},
		number("queries", func(p *Phase) int { return p.Queries }),
		number("answered", func(p *Phase) int { return p.Answered }),
		number("lost", func(p *Phase) int { return p.Lost }),
	}
	if before.Lost+after.Lost > 0 || r.Scenario == Exhaustion {
		rows = append(rows,
			[]string{"  of repeated names (cache hits)", share(before.HitsLost, before.Hits), share(after.HitsLost, after.Hits)},
			[]string{"  of names asked once (misses)", share(before.MissesLost, before.Misses), share(after.MissesLost, after.Misses)},
		)
	}
	return append(rows, [][]string{
		number("conntrack entries, peak", func(p *Phase) int { return p.EntriesPeak }),
		number("conntrack entries, end", func(p *Phase) int { return p.EntriesEnd }),
		number("  with a listen address, peak", func(p *Phase) int { return p.DNSEntriesPeak }),
		number("  with a listen address, end", func(p *Phase) int { return p.DNSEntriesEnd }),
		number("  to the upstream, peak", func(p *Phase) int { return p.UpstreamEntriesPeak }),
		number("  to the upstream, end", func(p *Phase) int { return p.UpstreamEntriesEnd }),
		{"DNS entries per 1,000 queries", tenths(before.EntriesPer1000Queries), tenths(after.EntriesPer1000Queries)},
		{"entries avoided, peak", r.notAvoided(), lab.Grouped(after.EntriesAvoidedPeak)},
		number("insert_failed", func(p *Phase) int { return int(p.InsertFailed) }),
		number("drop", func(p *Phase) int { return int(p.Drop) }),
		number("early_drop", func(p *Phase) int { return int(p.EarlyDrop) }),
		{"time to answer, p50", micros(before.P50), micros(after.P50)},
		{"time to answer, p99", micros(before.P99), micros(after.P99)},
		number("queries that reached kube-dns", func(p *Phase) int { return p.UpstreamQueries }),
	}...)
}

// notAvoided is what the first phase shows where the second shows avoided
// entries. A full table has room for neither.
func (r *Report) notAvoided() string {
	if r.Scenario == Exhaustion {
		return "-"
	}
	return "had " + lab.Grouped(r.Before.DNSEntriesPeak)
}

// writeColumns writes the first column flush left, the others flush right.
func writeColumns(b *strings.Builder, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		fmt.Fprintf(b, "%-*s", widths[0], row[0])
		for i, cell := range row[1:] {
			fmt.Fprintf(b, "  %*s", widths[i+1]+2, cell)
		}
		b.WriteByte('\n')
	}
}

func responders(p *Phase) string {
	names := slices.Sorted(maps.Keys(p.AnsweredBy))
	if len(names) == 0 {
		return "nobody"
	}
	texts := make([]string, len(names))
	for i, name := range names {
		texts[i] = string(name)
	}
	return strings.Join(texts, ", ")
}

func share(part, of int) string { return lab.Grouped(part) + " of " + lab.Grouped(of) }

func tenths(value float64) string {
	whole, fraction, _ := strings.Cut(strconv.FormatFloat(value, 'f', 1, 64), ".")
	n, err := strconv.Atoi(whole)
	if err != nil {
		return whole + "." + fraction
	}
	return lab.Grouped(n) + "." + fraction
}

func micros(us int64) string {
	if us == 0 {
		return "-"
	}
	d := time.Duration(us) * time.Microsecond
	if d < time.Millisecond {
		return fmt.Sprintf("%d µs", us)
	}
	return fmt.Sprintf("%.1f ms", float64(us)/1000)
}

func paint(text, code string, colour bool) string {
	if !colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}
