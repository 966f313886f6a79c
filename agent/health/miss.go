package health

import (
	"context"
	"time"

	"github.com/miekg/dns"
)

const (
	// checkPatience is how long a failed miss waits for a check. Checks of large rules take
	// longer; such a miss fails at once.
	checkPatience = 500 * time.Millisecond

	// missRounds bounds the tries of a miss while the state changes.
	missRounds = 3
)

// serveMiss passes a miss on. If the Service of the block is gone, it asks the cluster's
// DNS. It tries again if the state changed meanwhile.
func (m *Monitor) serveMiss(ctx context.Context, q Query) (rcode int, err error) {
	for range missRounds {
		st := m.now.Load()
		if st == nil {
			return q.pass(ctx)
		}
		if st.blocks[q.Block] {
			if err := m.askCluster(ctx, q, st); err == nil {
				return dns.RcodeSuccess, nil
			}
		}
		if rcode, err = m.passUntil(ctx, q, st); err == nil || rcode != dns.RcodeServerFailure || ctx.Err() != nil {
			// It was answered, or a plugin refused it, or its client has gone.
			return rcode, err
		}
		if m.now.Load() == st {
			// A Service that is gone may refuse at once.
			m.awaitCheck(ctx)
		}
		if m.now.Load() == st {
			return rcode, err
		}
	}
	return rcode, err
}

// Slow requests a check if misses go to a Service.
func (m *Monitor) Slow() {
	if m.now.Load() != nil {
		m.Recheck()
	}
}

func (m *Monitor) awaitCheck(ctx context.Context) {
	checked := m.checkWithin(checkPatience)
	if checked == nil {
		return
	}
	patience := time.NewTimer(checkPatience)
	defer patience.Stop()
	select {
	case <-checked:
	case <-patience.C:
	case <-ctx.Done():
	}
}

// passUntil passes a miss on, until its Service is found to be gone.
func (m *Monitor) passUntil(ctx context.Context, q Query, st *state) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(st.ctx, func() {
		if now := m.now.Load(); now != nil && now.blocks[q.Block] {
			cancel()
		}
	})()
	return q.pass(ctx)
}
