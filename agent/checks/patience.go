package checks

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/iptables/reconcile"
	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
)

// A check that is not answered in time shows that something hangs only if this process
// had the time to answer it. On a machine with more work than processors it often has
// not: nobody reads the query, and nobody looks at the clock either. So a check waits
// for a time of which only the parts count in which our own timers were punctual.
//
// longestPatience bounds a wait by the clock on the wall. It is a multiple of the lease: who
// got no processor for so long has lost that.
const longestPatience = 3 * time.Second

// patience is the wait for an answer.
type patience struct {
	counted  time.Duration // that our timers were punctual
	progress func() uint64
	idle     time.Duration // how long to wait if no query is answered meanwhile
	busy     time.Duration // and if some are

	mu     sync.Mutex
	before uint64
	began  time.Time
	last   time.Time
	timer  *time.Timer
	ended  bool
	cancel context.CancelCauseFunc
}

// patience bounds a check.
func (c *Checker) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	return c.patienceOf(ctx, checkTimeout, busyTimeout)
}

func (c *Checker) patienceOf(ctx context.Context, idle, busy time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	now := time.Now()
	p := &patience{progress: c.Progress, idle: idle, busy: busy, before: c.Progress(), began: now, last: now, cancel: cancel}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = time.AfterFunc(lease.Pulse, func() { p.look(time.Now()) })
	return ctx, p.end
}

func (p *patience) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.timer.Stop()
	p.cancel(nil)
}

// look counts the time since the look before, and ends the wait when it was enough.
func (p *patience) look(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	took := now.Sub(p.last)
	p.counted += took - lease.Late(took)
	p.last = now
	enough := p.idle
	if p.progress() != p.before {
		enough = p.busy
	}
	switch {
	case p.counted >= enough:
		p.cancel(context.DeadlineExceeded)
	case now.Sub(p.began) >= longestPatience:
		p.cancel(fmt.Errorf("%w: it ran for %s of the last %s", reconcile.ErrStarved, p.counted.Round(time.Millisecond), longestPatience))
	default:
		p.timer.Reset(lease.Pulse)
	}
}

// explain returns why a check failed: what it says itself, that there was no time to answer
// it, or that nobody answered in time (context.DeadlineExceeded).
func explain(ctx context.Context, err error) error {
	switch cause := context.Cause(ctx); {
	case err == nil:
		return nil
	case errors.Is(cause, reconcile.ErrStarved):
		return cause
	case errors.Is(cause, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}
