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
	"strings"
	"sync"
	"time"

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

// A row is a group of queries. Cached are those for which no upstream was asked; nil where
// that is not counted: by type, rcode and transport. Kernel and Socket are those of them that
// a fast path answered.
type row struct {
	Name    string  `json:"name,omitempty"`
	Queries uint64  `json:"queries"`
	Cached  *uint64 `json:"cached,omitempty"`
	Kernel  uint64  `json:"kernel,omitempty"`
	Socket  uint64  `json:"socket,omitempty"`
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
	r.By, r.PodsFrom, r.Notes, r.Seconds = by, found.Pods, nil, 0
	if by == "pod" || by == "namespace" {
		r.Notes = found.Notes
	}
	merged := map[string]control.QueryCount{}
	var total control.QueryCount
	for i := range r.counts {
		c := &r.counts[i]
		r.Seconds = max(r.Seconds, c.Seconds)
		total = total.Plus(c.Total)
		for _, one := range listOf(c, by) {
			name := cmp.Or(one.Key, groups.Rest)
			if one.Key != "" {
				name = nameOf(by, one.Key, found.Book)
			}
			merged[name] = merged[name].Plus(one)
		}
	}
	// A miss is known by client and name alone.
	missesKnown := !slices.Contains([]string{"type", "rcode", "transport"}, by)
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
		rest = rest.Plus(merged[further.Name])
	}
	r.Groups = list[:min(limit, len(list))]
	if rest.Queries > 0 {
		r.Groups = append(r.Groups, rowOf(groups.Rest, rest, missesKnown))
	}
}

func rowOf(name string, c control.QueryCount, missesKnown bool) row {
	r := row{Name: name, Queries: c.Queries, Kernel: c.Kernel, Socket: c.Socket}
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
	case "tier":
		return tiers(c.Total)
	}
	return c.Clients
}

// tiers are the ways to an answer, the cheapest first.
func tiers(total control.QueryCount) []control.QueryCount {
	early := min(total.Kernel+total.Socket, total.Queries)
	upstream := min(total.Misses, total.Queries-early)
	list := []control.QueryCount{
		{Key: "kernel", Queries: total.Kernel, Kernel: total.Kernel},
		{Key: "socket", Queries: total.Socket, Socket: total.Socket},
		{Key: "cache", Queries: total.Queries - early - upstream},
		{Key: "upstream", Queries: upstream, Misses: upstream},
	}
	return slices.DeleteFunc(list, func(c control.QueryCount) bool { return c.Queries == 0 })
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
	_, err := io.WriteString(out, r.text(cli.TerminalWidth(out)))
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

// text is a report for people, for a terminal of that width, 0 for any.
func (r *report) text(width int) string {
	var b bytes.Buffer
	facts, names := r.facts()
	line := strings.Join(facts, ", ")
	if names != "" {
		line += "; " + names
	}
	cli.WriteLine(&b, width, line)
	b.WriteByte('\n')
	for _, line := range r.table(width) {
		b.WriteString(line + "\n")
	}
	return b.String()
}

// facts are all queries in a few words, and names says where names of pods are from, where
// that matters.
func (r *report) facts() (facts []string, names string) {
	facts = []string{
		fmt.Sprintf("%s queries in %.1f s", figure.Thousands(r.Total.Queries), r.Seconds), r.rate(r.Total.Queries) + " a second",
	}
	if r.Total.Cached != nil && r.Total.Queries > 0 {
		facts = append(facts, share(*r.Total.Cached, r.Total.Queries)+" cached")
	}
	if early := r.Total.Kernel + r.Total.Socket; early > 0 {
		facts = append(facts, share(early, r.Total.Queries)+" by the fast path")
	}
	switch {
	case r.By != "pod" && r.By != "namespace":
		return facts, ""
	case r.PodsFrom == "":
		return facts, "no names of pods are known"
	}
	return facts, "names of pods from the " + r.PodsFrom
}

// table returns a header and a line for each group.
func (r *report) table(width int) []string {
	g := top.Grid{Title: "NAME", Columns: []top.Column{{Title: "QUERIES", Width: 10}, {Title: "PER s", Width: 8, Rank: 1}, {Title: "SHARE", Width: 7, Rank: 3}, {Title: "CACHED", Width: 7, Rank: 2}}}
	early := r.Total.Kernel+r.Total.Socket > 0
	if early {
		g.Columns = append(g.Columns, top.Column{Title: "KERNEL", Width: 7, Rank: 4}, top.Column{Title: "SOCKET", Width: 7, Rank: 5})
	}
	for _, group := range r.Groups {
		cached := "-"
		if group.Cached != nil {
			cached = share(*group.Cached, group.Queries)
		}
		cells := []string{figure.Thousands(group.Queries), r.rate(group.Queries), share(group.Queries, r.Total.Queries), cached}
		if early {
			cells = append(cells, share(group.Kernel, group.Queries), share(group.Socket, group.Queries))
		}
		g.Rows = append(g.Rows, top.GridRow{Name: group.Name, Cells: cells})
	}
	return g.Lines(width)
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
