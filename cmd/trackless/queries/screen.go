package queries

import (
	"cmp"
	"context"
	"io"
	"math"
	"slices"
	"time"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/cmd/trackless/top"
	"github.com/trackless-dns/trackless/conntrack/groups"
	"github.com/trackless-dns/trackless/kubeapi"
	"github.com/trackless-dns/trackless/node/instance"
	"github.com/trackless-dns/trackless/node/who"
)

// screenInterval is for how long queries are counted for one page, unless --interval says it.
const screenInterval = 2 * time.Second

// sorts are what rows can be sorted by, the largest first.
var sorts = []struct {
	title string
	of    func(row) uint64
}{
	{"QUERIES", func(r row) uint64 { return r.Queries }},
	{"CACHED", func(r row) uint64 {
		if r.Cached == nil {
			return 0
		}
		return *r.Cached
	}},
	{"UPSTREAM", func(r row) uint64 {
		if r.Cached == nil {
			return 0
		}
		return r.Queries - *r.Cached
	}},
	{"KERNEL", func(r row) uint64 { return r.Kernel }},
}

// screen is the screen for pages of this verb.
func screen(o options) top.Screen {
	s := top.Screen{
		Title: "trackless dns top", Node: kubeapi.NodeName(o.names.Name), Waiting: "counting queries for " + o.interval.String() + " ...",
		Interval: o.interval, Ways: ways, By: slices.Index(ways, o.by),
	}
	for _, sort := range sorts {
		s.Sorts = append(s.Sorts, sort.title)
	}
	return s
}

// page returns the counts by every way.
func (r *report) page(found *who.Found, problem string) top.Page {
	byWay := make([]report, len(ways))
	for i, way := range ways {
		byWay[i] = *r
		byWay[i].group(way, math.MaxInt, found)
	}
	facts, source := byWay[0].facts() // of pods
	return top.Page{
		At: r.Time.Local(), Summary: append(facts, source), Problem: problem,
		Table: func(v top.View) []string {
			shown := byWay[v.By]
			shown.Groups = slices.DeleteFunc(slices.Clone(shown.Groups), func(g row) bool { return !v.Has(g.Name) })
			slices.SortStableFunc(shown.Groups, func(a, b row) int {
				size := func(r row) uint64 {
					if r.Name == groups.Rest {
						return 0 // it is the last, however large
					}
					return sorts[v.Sort].of(r) + 1
				}
				return cmp.Compare(size(b), size(a))
			})
			return shown.table(v.Width)
		},
	}
}

// show counts again and again on a screen.
func show(ctx context.Context, node instance.Node, o options, in io.Reader, out io.Writer) error {
	names := o.names.Follow(ctx)
	s := screen(o)
	s.Colour = cli.Coloured(out)
	return top.Run(ctx, s, in, out, func(ctx context.Context, show func(top.Page)) error {
		var last *report
		for ctx.Err() == nil {
			r, err := count(ctx, node, o)
			switch {
			case ctx.Err() != nil: // a key ended it, which is no failure
			case err != nil && last == nil:
				return failure(err)
			case err != nil: // an instance that restarts is back in a moment
				show(last.page(names.Current(ctx), err.Error()))
				select {
				case <-ctx.Done():
				case <-time.After(o.interval):
				}
			default:
				last = r
				show(r.page(names.Current(ctx), ""))
			}
		}
		return nil
	})
}
