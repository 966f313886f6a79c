package queries

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/cmd/trackless/top"
	"github.com/trackless-dns/trackless/conntrack/groups"
	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/kubeapi/names"
	"github.com/trackless-dns/trackless/node/instance"
	"github.com/trackless-dns/trackless/node/who"
)

// A report is queries by groups. Its JSON names do not change.
type report struct {
	Time      time.Time `json:"time"`
	By        string    `json:"by"`
	Instances int       `json:"instances"`
	Seconds   float64   `json:"seconds"`
	Total     row       `json:"total"`
	Groups    []row     `json:"groups"`
	PodsFrom  string    `json:"pods_from"`
	Notes     []string  `json:"notes,omitempty"`

	counts []control.QueryCounts
}

// A row is a group of queries. Cached is nil where it is not counted: by type, rcode and
// transport.
type row struct {
	Name    string  `json:"name,omitempty"`
	Queries uint64  `json:"queries"`
	Cached  *uint64 `json:"cached,omitempty"`
}

// count has all instances count at the same time.
func count(ctx context.Context, node instance.Node, o options) (*report, error) {
	tables, _ := node.Instances() // needs a privilege that asking does not
	found, silent := instance.Reach(ctx, node, o.socket, instance.LocalPIDs(tables))
	if o.pid != 0 {
		found = slices.DeleteFunc(found, func(r instance.Reached) bool { return r.PID() != o.pid })
	}
	if len(found) == 0 {
		err := instance.NoAnswer(o.pid)
		for _, s := range silent {
			err = errors.Join(err, s.Err)
		}
		return nil, err
	}
	r := &report{Instances: len(found), counts: make([]control.QueryCounts, len(found))}
	failed := make([]error, len(found))
	var wg sync.WaitGroup
	for i, f := range found {
		wg.Go(func() {
			var err error
			if r.counts[i], err = f.CountQueries(ctx, o.interval); err != nil {
				failed[i] = fmt.Errorf("pid %d: %w", f.PID(), err)
			}
		})
	}
	wg.Wait()
	r.Time = time.Now().UTC().Truncate(time.Millisecond)
	return r, errors.Join(failed...)
}

// group adds the instances' counts up.
func (r *report) group(by string, limit int, found *who.Found) {
	r.By, r.PodsFrom = by, found.Pods
	if by == "pod" || by == "namespace" {
		r.Notes = found.Notes
	}
	merged := map[string]control.QueryCount{}
	var total control.QueryCount
	for i := range r.counts {
		c := &r.counts[i]
		r.Seconds = max(r.Seconds, c.Seconds)
		total = sum(total, c.Total)
		for _, one := range listOf(c, by) {
			name := cmp.Or(one.Key, groups.Rest)
			if one.Key != "" {
				name = nameOf(by, one.Key, found.Book)
			}
			merged[name] = sum(merged[name], one)
		}
	}
	// A miss is known by client and name alone.
	missesKnown := slices.Contains(ways[:4], by)
	r.Total = rowOf("", total, true)
	rest := merged[groups.Rest]
	delete(merged, groups.Rest)
	list := make([]row, 0, len(merged))
	for name, c := range merged {
		list = append(list, rowOf(name, c, missesKnown))
	}
	slices.SortFunc(list, func(a, b row) int {
		return cmp.Or(cmp.Compare(b.Queries, a.Queries), cmp.Compare(a.Name, b.Name))
	})
	for _, further := range list[min(limit, len(list)):] {
		rest = sum(rest, merged[further.Name])
	}
	r.Groups = list[:min(limit, len(list))]
	if rest.Queries > 0 {
		r.Groups = append(r.Groups, rowOf(groups.Rest, rest, missesKnown))
	}
}

func sum(a, b control.QueryCount) control.QueryCount {
	return control.QueryCount{Queries: a.Queries + b.Queries, Misses: a.Misses + b.Misses}
}

func rowOf(name string, c control.QueryCount, missesKnown bool) row {
	r := row{Name: name, Queries: c.Queries}
	if missesKnown {
		cached := c.Queries - min(c.Misses, c.Queries)
		r.Cached = &cached
	}
	return r
}

func listOf(c *control.QueryCounts, by string) []control.QueryCount {
	switch by {
	case "name":
		return c.Names
	case "zone":
		return c.Zones
	case "type":
		return c.Types
	case "rcode":
		return c.Rcodes
	case "transport":
		return c.Transports
	}
	return c.Clients
}

// nameOf returns the name of a group; for a client that of its pod.
func nameOf(by, key string, book *names.Book) string {
	if by != "pod" && by != "namespace" {
		return key
	}
	client, err := netip.ParseAddr(key)
	if err != nil {
		return key
	}
	owner := book.Owner(client)
	switch {
	case owner.Kind == names.Node:
		return groups.NodeItself
	case by == "namespace" && (owner.Kind != names.Pod || owner.Namespace == ""):
		return groups.NoPod
	case by == "namespace":
		return owner.Namespace
	case owner.Kind == names.Unknown:
		return key
	}
	return owner.String()
}

func (r *report) write(o options, out, errs io.Writer) error {
	switch o.output {
	case "json":
		return cli.WriteJSON(out, r)
	case "jsonl":
		return r.writeLines(out)
	}
	if r.PodsFrom == "" {
		cli.WriteNotes(errs, r.Notes)
	}
	width := cli.TerminalWidth(out)
	text := r.text(width)
	if !o.once && width > 0 && !cli.DumbTerminal() {
		text = "\x1b[H\x1b[2J" + text
	}
	_, err := io.WriteString(out, text)
	return err
}

// writeLines writes a line for each group.
func (r *report) writeLines(out io.Writer) error {
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	for _, g := range r.Groups {
		line := struct {
			Time    time.Time `json:"time"`
			By      string    `json:"by"`
			Seconds float64   `json:"seconds"`
			row
		}{r.Time, r.By, r.Seconds, g}
		if err := encoder.Encode(line); err != nil {
			return err
		}
	}
	return nil
}

const (
	columns   = "  %10s%10s%8s%8s\n"
	columnsIn = 38 // their width
	leastName = 8
)

// text is a report for people, for a terminal of that width, 0 for any.
func (r *report) text(width int) string {
	var b bytes.Buffer
	line := fmt.Sprintf("%s queries in %.1f s, %s a second", figure.Thousands(r.Total.Queries), r.Seconds, r.rate(r.Total.Queries))
	if r.Total.Cached != nil && r.Total.Queries > 0 {
		line += fmt.Sprintf(", %s cached", share(*r.Total.Cached, r.Total.Queries))
	}
	if r.By == "pod" || r.By == "namespace" {
		from := "no names of pods are known"
		if r.PodsFrom != "" {
			from = "names of pods from the " + r.PodsFrom
		}
		line += "; " + from
	}
	cli.WriteLine(&b, width, line)
	b.WriteByte('\n')
	longest := leastName
	for _, g := range r.Groups {
		longest = max(longest, utf8.RuneCountInString(g.Name))
	}
	if width > 0 {
		longest = max(min(longest, width-columnsIn), leastName)
	}
	cell := func(name string, rest ...any) {
		fmt.Fprintf(&b, "%-*s", longest, top.Shortened(name, longest))
		fmt.Fprintf(&b, columns, rest...)
	}
	cell("NAME", "QUERIES", "PER s", "SHARE", "CACHED")
	for _, g := range r.Groups {
		cached := "-"
		if g.Cached != nil {
			cached = share(*g.Cached, g.Queries)
		}
		cell(g.Name, figure.Thousands(g.Queries), r.rate(g.Queries), share(g.Queries, r.Total.Queries), cached)
	}
	return b.String()
}

func (r *report) rate(n uint64) string {
	if r.Seconds <= 0 {
		return "-"
	}
	return figure.Rate(float64(n) / r.Seconds)
}

func share(part, whole uint64) string {
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(max(whole, 1)))
}
