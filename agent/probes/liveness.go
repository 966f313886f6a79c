package probes

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Liveness remembers a question of a liveness probe that has not returned.
type Liveness struct {
	mu    sync.Mutex
	since time.Time // zero: none is under way
}

// begin reports since when an earlier question is under way, or notes a new one.
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

// Probe asks by ask, which may hang. While an earlier question is under way it asks
// nothing.
func (l *Liveness) Probe(ctx context.Context, ask func(context.Context) error) error {
	if since, busy := l.begin(); busy {
		// Two probes at once wait for the same; one that is long under way
		// does not come back.
		if age := time.Since(since); age > time.Second {
			return fmt.Errorf("the question of an earlier probe has not come back for %s", age.Round(time.Second))
		}
		return nil
	}
	done := make(chan error, 1)
	go func() {
		err := ask(context.WithoutCancel(ctx))
		l.end() // first, so that a probe that follows asks anew
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errors.New("a query that needs no upstream does not come back from the plugins: the process hangs")
	}
}
