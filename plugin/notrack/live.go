package notrack

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/agent/checks"
	"github.com/trackless-dns/trackless/agent/recorder"
)

// liveness remembers a question of a liveness probe that has not returned.
type liveness struct {
	mu    sync.Mutex
	since time.Time // zero: none is under way
}

// begin reports since when an earlier question is under way, or notes a new one.
func (l *liveness) begin() (since time.Time, busy bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.since.IsZero() {
		return l.since, true
	}
	l.since = time.Now()
	return l.since, false
}

func (l *liveness) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since = time.Time{}
}

// Live implements [control.Prober]. Every server block is asked a check inside
// the process, through `cache` if it has one. Packets play no part: rules of
// others, which a restart does not mend, must not have us restarted.
func (c controlled) Live(ctx context.Context) error {
	config := c.process.serving.Load()
	if config == nil {
		return nil // that the control socket answered is all there is to know
	}
	l := &c.process.live
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
		err := config.askInside(context.WithoutCancel(ctx))
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

func (c *configuration) askInside(ctx context.Context) error {
	c.mu.Lock()
	handlers := make([]*NoTrack, 0, len(c.handlers))
	for _, n := range c.handlers {
		handlers = append(handlers, n)
	}
	c.mu.Unlock()
	for _, n := range handlers {
		query := c.identity.Query(checks.CheckLabel, ".")
		w := &recorder.Recorder{}
		if _, err := n.answerProbe(ctx, w, query, checks.Probe{Check: true, Own: true}); err != nil {
			return fmt.Errorf("server block %s: %w", n.block.Zone, err)
		}
		if w.Answer == nil {
			return fmt.Errorf("server block %s: no answer to a check", n.block.Zone)
		}
		if _, err := c.identity.AnsweredBy(query, w.Answer); err != nil {
			return fmt.Errorf("server block %s: %w", n.block.Zone, err)
		}
	}
	return nil
}
