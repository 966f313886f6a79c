package reconcile

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
	"github.com/trackless-dns/trackless/iptables/reconcile/shared"
)

// loadMeter measures the load of the process.
type loadMeter struct {
	cfg      *Config
	mu       sync.Mutex // held for a measurement
	pressure lease.Pressure
}

// measure takes a sample of the load, if it is time to, and returns what the last two
// tell. Another CPU limit makes the machine forget the lapses before.
func (l *loadMeter) measure(p iptables.Plan, leases *shared.Machine) lease.Pressure {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.pressure.Due(time.Now()) {
		return l.pressure
	}
	limit := l.pressure.Limit()
	if l.pressure.Note(time.Now(), l.cfg.Kernel.Load(p.Listen)) {
		l.cfg.Log.Infof("the CPU limit of this process has changed from %s to %s: the lapses before are forgotten", lease.MilliCPU(limit), lease.MilliCPU(l.pressure.Limit()))
		leases.Tell((*lease.Machine).EndWait)
	}
	return l.pressure
}

// throttled reports whether the CPU limit was used up between the last two samples.
func (l *loadMeter) throttled() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pressure.Cause() == lease.Throttled
}

// Crowded is for a query that finds many others before it: it measures the load in
// the place of the reconciler's own goroutines, which have their turn after them. It
// does not wait for those who change what is attached.
func (r *Reconciler) Crowded() {
	if check := r.crowded.Load(); check != nil {
		(*check)()
	}
}

// checkLoad leaves all queries to the cluster's DNS if too many are lost here to a CPU
// limit. In its own time the lease would run out, and they would be lost until then.
// lock takes the lock, or reports that it could not.
func (s *serving) checkLoad(ctx context.Context, lock func() bool) {
	load := s.r.load.measure(s.plan, &s.r.leases)
	if !load.Overloaded() || !s.mayYield(ctx) || !lock() {
		return
	}
	defer s.r.mu.Unlock()
	if !s.mayYield(ctx) || s.r.current != s {
		return
	}
	var wait time.Duration
	s.r.leases.Tell(func(m *lease.Machine) { wait = m.Overloaded(time.Now(), errors.New(load.Explain())) })
	s.r.yieldTo(s.plan, s.plan.Addresses())
	part, backlog := load.Lost()
	s.r.cfg.Log.Warningf("%s: detached, DNS goes to the cluster for %s: %.0f %% of the queries were lost here, and others waited for %s: %s",
		figure.Joined(s.plan.Addresses()), wait, 100*part, backlog.Round(time.Millisecond), load.Explain())
}

// limited reports whether there is a CPU limit.
func (l *loadMeter) limited() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pressure.Limit() > 0
}

// watchLoad checks the load, and goes on while there is a limit and queries come: a
// lease is long for those that are lost.
func (s *serving) watchLoad(ctx context.Context) {
	for {
		queries := s.r.cfg.Queries()
		s.checkLoad(ctx, func() bool { s.r.mu.Lock(); return true })
		if !s.r.load.limited() || !sleep(ctx, lease.SampleInterval) || s.r.cfg.Queries() == queries {
			return
		}
	}
}

func (s *serving) mayYield(ctx context.Context) bool {
	return ctx.Err() == nil && shared.Ask(&s.r.leases, func(m *lease.Machine) bool { return m.MayYield(time.Now(), s.plan) })
}
