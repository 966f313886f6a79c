package groups

import (
	"context"
	"errors"
	"fmt"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/reread"
	"github.com/trackless-dns/trackless/kubeapi/names"
)

// A Reading is one pass over a table.
type Reading struct {
	Book   *names.Book
	By     []By
	Filter conntrack.Filter
	// Distinct counts each entry once although a dump may have it twice, and remembers it
	// for the next reading: 8 to 22 bytes an entry.
	Distinct bool
	// Before are the entries of the reading before, nil at the first: none is new then.
	Before *reread.Set
	// Expected is about how many entries there are.
	Expected uint64
	Progress reread.Progress
}

// Do reads the table. It reads again if the table was rebuilt meanwhile. After
// reread.Attempts the counts come with an error that wraps conntrack.ErrInterrupted; with
// any other error, that of the context too, they are nil.
func (r Reading) Do(ctx context.Context, c *conntrack.Conn) (*Collector, error) {
	var collector *Collector
	err := reread.Until(r.Progress, func() error {
		collector = New(r.Book, r.By...)
		if r.Distinct {
			collector.After(r.Before)
		}
		read := r.Progress.Begin("entries read", r.Expected)
		defer read.Stop()
		return c.Dump(r.Filter, func(e *conntrack.Entry) error {
			read.Step()
			_ = collector.Add(e) // always nil
			return ctx.Err()
		})
	})
	switch {
	case errors.Is(err, conntrack.ErrInterrupted):
		err = fmt.Errorf("gave up after %d attempts, the numbers are near: %w", reread.Attempts, err)
	case err != nil:
		return nil, err
	}
	return collector, err
}
