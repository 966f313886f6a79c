package cache

import (
	"fmt"
	"time"

	"github.com/trackless-dns/trackless/internal/loglimit"
)

// maxErrors is how many errors of queries are reported in a second: while an upstream
// is away there is one for each name that is asked for, and CoreDNS's errors logs
// each.
const maxErrors = 4

// errorLimit holds errors back. The zero value is ready.
type errorLimit struct{ budget loglimit.Budget }

// reported is for all caches: they write into one log.
var reported errorLimit

// pass returns the error if it is to be reported, with the number of those that were
// not, and nil otherwise.
func (l *errorLimit) pass(err error) error {
	if err == nil {
		return nil
	}
	held, ok := l.budget.Take(time.Now(), maxErrors, time.Second)
	switch {
	case !ok:
		return nil
	case held > 0:
		return fmt.Errorf("%w (and %d more queries that failed before this one)", err, held)
	}
	return err
}
