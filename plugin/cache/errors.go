package cache

import (
	"fmt"
	"time"

	"github.com/trackless-dns/trackless/internal/loglimit"
)

// maxErrors bounds the errors of queries that are reported in a second. While an upstream
// does not respond there is one for each name, and CoreDNS's plugin errors logs each.
const maxErrors = 4

// errorLimit bounds the reported errors. The zero value is ready.
type errorLimit struct{ budget loglimit.Budget }

// reported is shared by all caches: they write to one log.
var reported errorLimit

// pass returns the error if it may be reported, with the number of errors that were not,
// and nil otherwise.
func (l *errorLimit) pass(err error) error {
	if err == nil {
		return nil
	}
	held, ok := l.budget.Take(time.Now(), maxErrors, time.Second)
	switch {
	case !ok:
		return nil
	case held > 0:
		return fmt.Errorf("%w (%d more queries failed before this one)", err, held)
	}
	return err
}
