package groups

import (
	"cmp"
	"slices"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/reread"
	"github.com/trackless-dns/trackless/kubeapi/names"
)

// maxKeys is how many keys are counted at a time for one By: a megabyte of them. No node has
// more pods, Services and servers that matter. A flood with forged addresses has more.
const maxKeys = 8192

// A Collector counts entries. It is not safe for concurrent use.
type Collector struct {
	book   *names.Book
	before *reread.Set // entries of the reading before; nil: none is new
	seen   *reread.Set // entries of this one; nil: the dump has each once
	by     []By
	total  Counts
	counts [kinds]*bounded
}

// New returns a Collector that counts by each of these, with the names of the book.
func New(book *names.Book, by ...By) *Collector {
	c := &Collector{book: book, by: by}
	for _, b := range by {
		c.counts[b] = &bounded{counts: map[key]*Counts{}, max: maxKeys}
	}
	return c
}

// After counts the entries that are not in before as new, and each entry once although a
// dump may have it twice. Before is what Seen of the reading before returned, or nil.
func (c *Collector) After(before *reread.Set) {
	c.before, c.seen = before, reread.NewSet()
}

// Seen returns the entries that were counted, for After.
func (c *Collector) Seen() *reread.Set { return c.seen }

// Add counts one entry. It does not keep e. It always returns nil, so that it can be the
// callback of a dump.
func (c *Collector) Add(e *conntrack.Entry) error {
	if c.seen != nil && !c.seen.Add(e) {
		return nil
	}
	one := countsOf(e, c.before != nil && !c.before.Has(e))
	c.total.add(one)
	for _, b := range c.by {
		c.counts[b].add(keyOf(b, e, c.book), one)
	}
	return nil
}

// Total returns the counts of all entries.
func (c *Collector) Total() Counts { return c.total }

// A Row is a group with its counts. Its JSON names do not change.
type Row struct {
	Name string `json:"name"`
	Counts
}

// Rows returns all groups, those with the most entries first. The counts add up to the
// total: groups that were too many to count are one row, Rest.
func (c *Collector) Rows(by By) []Row {
	b := c.counts[by]
	merged := map[string]*Counts{}
	for k, n := range b.counts {
		name := nameOf(by, k, c.book)
		if merged[name] == nil {
			merged[name] = &Counts{}
		}
		merged[name].add(*n)
	}
	rows := make([]Row, 0, len(merged)+1)
	for name, n := range merged {
		rows = append(rows, Row{name, *n})
	}
	if b.rest.Entries > 0 {
		rows = append(rows, Row{Rest, b.rest})
	}
	slices.SortFunc(rows, func(a, b Row) int { return cmp.Or(cmp.Compare(b.Entries, a.Entries), cmp.Compare(a.Name, b.Name)) })
	return rows
}

// Top returns the first n rows. The others are one more row, Rest.
func Top(rows []Row, n int) []Row {
	if len(rows) <= n {
		return rows
	}
	rest := Row{Name: Rest}
	out := make([]Row, 0, n+1)
	for _, r := range rows {
		if r.Name == Rest || len(out) == n {
			rest.add(r.Counts)
			continue
		}
		out = append(out, r)
	}
	return append(out, rest)
}

// bounded counts by key in bounded memory. When there are too many keys, the counts of the
// rarer half go to rest.
type bounded struct {
	counts map[key]*Counts
	rest   Counts
	max    int
}

func (b *bounded) add(k key, one Counts) {
	n := b.counts[k]
	if n == nil {
		if len(b.counts) >= b.max {
			b.prune()
		}
		n = &Counts{}
		b.counts[k] = n
	}
	n.add(one)
}

func (b *bounded) prune() {
	entries := make([]uint64, 0, len(b.counts))
	for _, n := range b.counts {
		entries = append(entries, n.Entries)
	}
	slices.Sort(entries)
	median, keep := entries[len(entries)/2], b.max/2
	for k, n := range b.counts {
		if n.Entries < median || n.Entries == median && len(b.counts) > keep {
			b.rest.add(*n)
			delete(b.counts, k)
		}
	}
}
