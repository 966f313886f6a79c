package experiment

import (
	"fmt"
	"io"
	"strings"

	"github.com/trackless-dns/trackless/lab"
)

// A SearchReport is what a Search found: its JSON form is stable, fields may be added but keep their
// names and meaning.
type SearchReport struct {
	Scenario Scenario `json:"scenario"`
	Names    int      `json:"names"`
	Pods     int      `json:"pods"`

	// SearchDomains are the domains of the search path. UpstreamDelay is how long kube-dns takes.
	SearchDomains int   `json:"search_domains"`
	UpstreamDelay int64 `json:"upstream_delay_us"`

	// Ways are the ways to answer: today, with one denial for each question; cut, with denials of all
	// names below a name; one_pass, with the answer for the whole search path.
	Ways []Way `json:"ways"`

	// Promises are what was to be shown, Kept is true if all of them held.
	Promises []Promise `json:"promises"`
	Kept     bool      `json:"kept"`
}

// A Way is one of the ways to answer a search path.
type Way struct {
	Name string `json:"name"`

	// Lookups are of a new name each. Found is how many got an address.
	Lookups int `json:"lookups"`
	Found   int `json:"found"`

	// ClientQueries are those of the pods, UpstreamQueries those that kube-dns got; and for a name, to
	// two decimals.
	ClientQueries   int `json:"client_queries"`
	UpstreamQueries int `json:"upstream_queries"`
	// BypassedQueries are queries of pods that went to kube-dns past trackless, since a starved machine let
	// the lease run out. They are among the others.
	BypassedQueries int     `json:"bypassed_queries"`
	ClientPerName   float64 `json:"client_queries_per_name"`
	UpstreamPerName float64 `json:"upstream_queries_per_name"`

	// Percentiles of the time from the first query of a lookup to its first address, in microseconds.
	P50 int64 `json:"first_address_p50_us"`
	P99 int64 `json:"first_address_p99_us"`

	// DurationMS is how long the lookups took, in milliseconds.
	DurationMS int64 `json:"duration_ms"`
}

const (
	// searchUpstream is the number of queries upstream for a name that a cut may cost. The two for the
	// name itself are among them.
	searchUpstream = 2.1
	// searchTime is how long the first address may take, as a part of today's time.
	searchTime = 0.3
)

// judge says what was promised and whether it held.
func (r *SearchReport) judge() {
	today, cut, onePass := &r.Ways[0], &r.Ways[1], &r.Ways[2]
	found := Promise{Name: "found", Text: "every lookup finds an address", Kept: true}
	for i, w := range r.Ways {
		found.Kept = found.Kept && w.Lookups == r.Names && w.Found == r.Names
		found.Found += strings.Repeat(", ", min(i, 1)) + lab.Grouped(w.Found)
	}
	found.Found += " of " + lab.Grouped(r.Names)
	upstream := func(name string, w *Way) Promise {
		return Promise{
			Name: name, Text: fmt.Sprintf("a name costs kube-dns at most %.1f queries with %s", searchUpstream, wayTitles[w.Name]),
			Found: fmt.Sprintf("%.2f, and %.2f today", w.UpstreamPerName, today.UpstreamPerName),
			Kept:  w.UpstreamPerName <= searchUpstream && w.UpstreamPerName > 0,
		}
	}
	faster := func(name string, w *Way) Promise {
		return Promise{
			Name: name, Text: fmt.Sprintf("the first address takes at most %.1f of today's time with %s", searchTime, wayTitles[w.Name]),
			Found: fmt.Sprintf("%s, and %s today", micros(w.P50), micros(today.P50)),
			Kept:  w.P50 > 0 && float64(w.P50) <= searchTime*float64(today.P50),
		}
	}
	r.Promises = []Promise{
		found,
		upstream("cut_upstream", cut),
		upstream("one_pass_upstream", onePass),
		{
			Name: "one_pass_client", Text: "a lookup is two queries of the client with one pass",
			Found: fmt.Sprintf("%.2f, and %.2f today", onePass.ClientPerName, today.ClientPerName),
			Kept:  onePass.ClientQueries == 2*r.Names,
		},
		faster("cut_time", cut),
		faster("one_pass_time", onePass),
	}
	r.Kept = allKept(r.Promises)
}

var wayTitles = map[string]string{"today": "today", "cut": "the cut", "one_pass": "one pass"}

// WriteTable writes the report for people. Colour marks kept and broken promises with ANSI escape
// sequences.
func (r *SearchReport) WriteTable(out io.Writer, colour bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s new external names, each looked up once for A and AAAA from %d pods\nwith %d search domains; kube-dns takes %s to answer\n\n",
		lab.Grouped(r.Names), r.Pods, r.SearchDomains, micros(r.UpstreamDelay))
	row := func(title string, of func(*Way) string) []string {
		cells := []string{title}
		for i := range r.Ways {
			cells = append(cells, of(&r.Ways[i]))
		}
		return cells
	}
	writeColumns(&b, [][]string{
		row("", func(w *Way) string { return wayTitles[w.Name] }),
		row("names found", func(w *Way) string { return lab.Grouped(w.Found) }),
		row("queries of clients", func(w *Way) string { return lab.Grouped(w.ClientQueries) }),
		row("  for a name", func(w *Way) string { return fmt.Sprintf("%.2f", w.ClientPerName) }),
		row("queries that reached kube-dns", func(w *Way) string { return lab.Grouped(w.UpstreamQueries) }),
		row("  for a name", func(w *Way) string { return fmt.Sprintf("%.2f", w.UpstreamPerName) }),
		row("queries past trackless", func(w *Way) string { return lab.Grouped(w.BypassedQueries) }),
		row("time to the first address, p50", func(w *Way) string { return micros(w.P50) }),
		row("time to the first address, p99", func(w *Way) string { return micros(w.P99) }),
	})
	b.WriteByte('\n')
	writePromises(&b, r.Promises, colour)
	_, err := io.WriteString(out, b.String())
	return err
}
