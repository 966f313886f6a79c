package cache

import (
	"fmt"
	"sync"
	"time"
)

// maxErrors is how many errors of queries are reported in a second: while an upstream
// is away there is one for each name that is asked for, and CoreDNS's errors logs
// each.
const maxErrors = 4

// errorLimit holds errors back. The zero value is ready.
type errorLimit struct {
	mu     sync.Mutex
	since  time.Time
	passed int // since then
	held   int // since the last that passed
}

// reported is for all caches: they write into one log.
var reported errorLimit

// pass returns the error if it is to be reported, with the number of those that were
// not, and nil otherwise.
func (l *errorLimit) pass(err error) error {
	if err == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.since) >= time.Second || now.Before(l.since) { // the latter where tests have a clock each
		l.since, l.passed = now, 0
	}
	if l.passed == maxErrors {
		l.held++
		return nil
	}
	l.passed++
	if l.held > 0 {
		err = fmt.Errorf("%w (and %d more queries that failed before this one)", err, l.held)
		l.held = 0
	}
	return err
}
