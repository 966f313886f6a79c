package probes

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Liveness remembers the check of a liveness probe that has not returned.
type Liveness struct {
	mu    sync.Mutex
	since time.Time // zero: none is under way
}

// begin records a new check, or returns since when an earlier one is under way.
func (l *Liveness) begin() (since time.Time, busy bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.since.IsZero() {
		return l.since, true
	}
	l.since = time.Now()
	return l.since, false
}

func (l *Liveness) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since = time.Time{}
}

// ErrHangs means that the plugins do not answer a query that needs no upstream.
var ErrHangs = errors.New("the plugins do not answer a query that needs no upstream: the process hangs")

// A StuckError means that the check of an earlier probe has not returned.
type StuckError struct{ For time.Duration }

func (e *StuckError) Error() string {
	return fmt.Sprintf("the check of an earlier probe has not returned for %s: the process hangs", e.For.Round(time.Second))
}

// Probe calls ask, which may hang. It calls it not while an earlier call is under way. It
// returns [ErrHangs] or a [*StuckError] if the call does not return in time.
func (l *Liveness) Probe(ctx context.Context, ask func(context.Context) error) error {
	if since, busy := l.begin(); busy {
		// Probes may overlap for a short time.
		if age := time.Since(since); age > time.Second {
			return &StuckError{For: age}
		}
		return nil
	}
	done := make(chan error, 1)
	go func() {
		err := ask(context.WithoutCancel(ctx))
		l.end() // before the result, so that the next probe calls ask again
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ErrHangs
	}
}
