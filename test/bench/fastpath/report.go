package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// A report is what was measured. Its JSON form is stable.
type report struct {
	Method   string     `json:"method"`
	Rounds   int        `json:"rounds"`
	Loads    []measured `json:"loads"`
	Verdicts []verdict  `json:"bars"`
}

// measured are the rounds of one load.
type measured struct {
	Load string `json:"load"`

	// Others disturbed so many rounds, which were discarded, and so many samples, which
	// were taken again at once.
	Discarded int `json:"discarded"`
	Repeated  int `json:"repeated"`

	Rounds []round `json:"rounds"`
}

// judge compares what was measured with the bars.
func (r *report) judge(bars []bar) {
	for _, b := range bars {
		var rounds []round
		if i := slices.IndexFunc(r.Loads, func(m measured) bool { return m.Load == b.load }); i >= 0 && len(r.Loads[i].Rounds) >= r.Rounds {
			rounds = r.Loads[i].Rounds
		}
		r.Verdicts = append(r.Verdicts, b.judge(rounds))
	}
}

// count counts the bars by what became of them.
func (r *report) count() (kept, missed, unknown int) {
	for _, v := range r.Verdicts {
		switch {
		case v.Measured == nil:
			unknown++
		case v.Kept:
			kept++
		default:
			missed++
		}
	}
	return kept, missed, unknown
}

// status is the exit status: a bar that was missed outweighs one that is unknown.
func (r *report) status() int {
	good, failed, open := r.count()
	switch {
	case failed > 0:
		return missed
	case open > 0 || good == 0:
		return unknown
	}
	return kept
}

// writeTable writes the figures of each load, the bars, and in the last line the verdict.
func (r *report) writeTable(w io.Writer) error {
	fmt.Fprintf(w, "%s\nMedian [lowest highest] of %d rounds.\n", r.Method, r.Rounds)
	for _, m := range r.Loads {
		fmt.Fprintf(w, "\n%s; since others disturbed them, %d rounds were discarded and %d samples taken again\n", m.Load, m.Discarded, m.Repeated)
		if err := m.write(w); err != nil {
			return err
		}
	}
	fmt.Fprintln(w, "\nbars, of ratios in the same round")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, v := range r.Verdicts {
		fmt.Fprintln(t, v.row())
	}
	if err := t.Flush(); err != nil {
		return err
	}
	word := map[int]string{kept: "pass", missed: "FAIL", unknown: "unknown"}[r.status()]
	keptBars, failed, open := r.count()
	_, err := fmt.Fprintf(w, "\n%s: %d bars kept, %d not kept, %d not measured\n", word, keptBars, failed, open)
	return err
}

// write writes a row for each server.
func (m measured) write(w io.Writer) error {
	if len(m.Rounds) == 0 {
		_, err := fmt.Fprintln(w, "not measured")
		return err
	}
	columns := []figure{cpu, ofServer, process, qps, p50, p99, program}
	columns = slices.DeleteFunc(columns, func(f figure) bool {
		return !slices.ContainsFunc(m.Rounds[0], func(s sample) bool { return f.of(s) > 0 })
	})
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "server")
	for _, f := range columns {
		fmt.Fprint(t, "\t", strings.TrimSpace(f.name+" "+f.unit))
	}
	fmt.Fprintln(t, "\tlost")
	names := slices.Clone(m.Rounds[0])
	slices.SortFunc(names, func(a, b sample) int {
		return cmp.Compare(slices.Index(serverNames(), a.Server), slices.Index(serverNames(), b.Server))
	})
	for _, named := range names {
		fmt.Fprint(t, named.Server)
		for _, f := range columns {
			var values []float64
			for _, r := range m.Rounds {
				if s, there := r.find(named.Server); there {
					values = append(values, f.of(s))
				}
			}
			fmt.Fprint(t, "\t", spreadOf(values))
		}
		lost, sent := m.lost(named.Server)
		fmt.Fprintf(t, "\t%d of %d\n", lost, sent)
	}
	return t.Flush()
}

// lost is how many queries of a server were lost in all rounds.
func (m measured) lost(server string) (lost, sent int) {
	for _, r := range m.Rounds {
		if s, there := r.find(server); there {
			lost, sent = lost+s.Lost, sent+s.Sent
		}
	}
	return lost, sent
}

func (s spread) String() string {
	return fmt.Sprintf("%s [%s %s]", digits(s.Median), digits(s.Min), digits(s.Max))
}

// digits writes at least three digits.
func digits(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// row is the verdict as cells.
func (v verdict) row() string {
	measured, word := "not measured", "unknown"
	if v.Measured != nil {
		if measured, word = v.Measured.String(), "FAIL"; v.Kept {
			word = "pass"
		}
	}
	of := ""
	if len(v.Peers) > 0 {
		of = " / " + strings.Join(v.Peers, " or ")
	}
	most := "at most"
	if v.More {
		most = "at least"
	}
	return fmt.Sprintf("%s, %s:\t%s%s\t%s\t%s %s\t%s", v.Load, v.Figure, v.Server, of, measured, most, digits(v.Bound), word)
}
