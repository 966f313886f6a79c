// Package reread reads a connection tracking table whole. The kernel may rebuild the
// table's hash while it is dumped; the dump is then incomplete and has to be made
// again.
package reread

import (
	"errors"
	"fmt"

	"github.com/trackless-dns/trackless/conntrack"
)

// Attempts is how often a table is read that is rebuilt each time.
const Attempts = 3

// A Progress is called while a long table is read.
type Progress interface {
	// Begin starts to count what, of which about total are expected.
	Begin(what string, total uint64) Counter
	// Again says that the table was rebuilt, and which attempt comes next.
	Again(err error, attempt int)
}

// A Counter counts one thing at a time.
type Counter interface {
	Step()
	Stop()
}

// Dump is conntrack.Conn.Dump.
type Dump func(conntrack.Filter, func(*conntrack.Entry) error) error

// Entries dumps until the table held still, and hands on every entry once. A
// rebuild of the table is rare, but only what was remembered all along can be
// told from what was not seen yet. After Attempts it returns an error that wraps
// conntrack.ErrInterrupted.
func Entries(dump Dump, f conntrack.Filter, fn func(*conntrack.Entry) error, p Progress) error {
	seen := NewSet()
	err := Until(p, func() error {
		return dump(f, func(e *conntrack.Entry) error {
			if !seen.Add(e) {
				return nil
			}
			return fn(e)
		})
	})
	if errors.Is(err, conntrack.ErrInterrupted) {
		err = fmt.Errorf("gave up after %d attempts: %w", Attempts, err)
	}
	return err
}

// Until reads again while read returns conntrack.ErrInterrupted, at most Attempts
// times.
func Until(p Progress, read func() error) error {
	for attempt := 1; ; attempt++ {
		err := read()
		if attempt == Attempts || !errors.Is(err, conntrack.ErrInterrupted) {
			return err
		}
		p.Again(err, attempt+1)
	}
}
