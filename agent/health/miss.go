package health

import (
	"context"
	"time"

	"github.com/miekg/dns"
)

const (
	// lookPatience is how long a failed miss waits for a check. Where large rules make
	// checks take longer, such a miss fails at once.
	lookPatience = 500 * time.Millisecond

	// missRounds is how often a miss is tried while what is known changes.
	missRounds = 3
)

// serveMiss passes a miss on, or asks the cluster's DNS if the Service of the
// block is gone, and does so again if that changed meanwhile.
func (m *Monitor) serveMiss(ctx context.Context, q Query) (rcode int, err error) {
	for range missRounds {
		l := m.now.Load()
		if l == nil {
			return q.pass(ctx)
		}
		if l.blocks[q.Block] {
			if err := m.askCluster(ctx, q, l); err == nil {
				return dns.RcodeSuccess, nil
			}
		}
		if rcode, err = m.passUntil(ctx, q, l); err == nil || rcode != dns.RcodeServerFailure || ctx.Err() != nil {
			// Answered; or refused by a plugin, which knows nothing of Services; or
			// nobody waits for an answer any more.
			return rcode, err
		}
		if m.now.Load() == l {
			// A Service that is gone may also refuse at once.
			m.awaitLook(ctx)
		}
		if m.now.Load() == l {
			return rcode, err
		}
	}
	return rcode, err
}

// Slow asks for a check if misses go to a Service.
func (m *Monitor) Slow() {
	if m.now.Load() != nil {
		m.Recheck()
	}
}

func (m *Monitor) awaitLook(ctx context.Context) {
	looked := m.look(lookPatience)
	if looked == nil {
		return
	}
	patience := time.NewTimer(lookPatience)
	defer patience.Stop()
	select {
	case <-looked:
	case <-patience.C:
	case <-ctx.Done():
	}
}

// passUntil passes a miss on and gives up when its Service is found to be gone.
func (m *Monitor) passUntil(ctx context.Context, q Query, l *state) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.ctx, func() {
		if now := m.now.Load(); now != nil && now.blocks[q.Block] {
			cancel()
		}
	})()
	return q.pass(ctx)
}
