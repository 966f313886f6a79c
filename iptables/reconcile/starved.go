package reconcile

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
)

// ErrStarved is matched by the error of a check that was not answered and says nothing:
// the process had no time to answer it.
var ErrStarved = lease.ErrStarved

// On a machine with more work than processors a round takes longer than a lease lasts,
// although all is well: each goroutine of it waits for a processor, and the round for
// the last of them. So leases wait for nobody while our own timers are late.
const (
	// roundLate is by how much our timers are late in a round, all together, when the
	// process counts as starved.
	roundLate = 50 * time.Millisecond
)

// checkRound is a round of checks under way.
type checkRound struct {
	done chan struct{}
	of   map[netip.Addr]*addressCheck
}

// addressCheck is the check of one address.
type addressCheck struct {
	over chan struct{} // closed when it is
	err  error         // then
}

// startChecks begins to check the endpoints that are due, nil for all.
func (s *serving) startChecks(ctx context.Context, due func(iptables.Endpoint) bool) *checkRound {
	r := &checkRound{done: make(chan struct{}), of: map[netip.Addr]*addressCheck{}}
	var wg sync.WaitGroup
	for _, a := range s.plan.Addresses() {
		c := &addressCheck{over: make(chan struct{})}
		r.of[a] = c
		wg.Go(func() {
			defer close(c.over)
			c.err = s.check(ctx, a, due)
		})
	}
	go func() {
		defer close(r.done)
		wg.Wait()
	}()
	return r
}

// failed returns what went wrong by address, once the round is done.
func (r *checkRound) failed() map[netip.Addr]error {
	errs := map[netip.Addr]error{}
	for a, c := range r.of {
		if c.err != nil {
			errs[a] = c.err
		}
	}
	return errs
}

// beginChecks begins a round of checks, or goes on with the one that is under way.
func (s *serving) beginChecks(ctx context.Context) *checkRound {
	if s.round == nil {
		s.round = s.startChecks(ctx, s.checker.IsDue)
	}
	return s.round
}

// leaveChecks waits until no check is under way. The context has ended.
func (s *serving) leaveChecks() {
	if s.round != nil {
		<-s.round.done
	}
}

// turns are the turns of addresses whose leases are renewed in one round: one each, or
// more as long as the process is starved.
type turns struct {
	one     chan struct{} // closed when each has had one
	starved chan struct{} // closed when the process is
	over    chan struct{} // closed when nobody has another
}

func newTurns() *turns {
	return &turns{make(chan struct{}), make(chan struct{}), make(chan struct{})}
}

func (t *turns) hadOne() { close(t.one) }

// another waits for the turn that an address has at the interval after the one before,
// and reports whether it has one.
func (t *turns) another(interval time.Duration) bool {
	select {
	case <-t.over:
		return false
	case <-t.starved:
	}
	timer := time.NewTimer(interval)
	defer timer.Stop()
	select {
	case <-t.over:
		return false
	case <-timer.C:
		return true
	}
}

// run runs a round: the checks, and at the same time the renewals of the leases that are
// due. It returns no checks (nil) if these are not over while the process is starved.
func (s *serving) run(ctx context.Context, due []netip.Addr) (failed map[netip.Addr]error, renewals []lease.Renewal) {
	checks := s.beginChecks(ctx)
	t := newTurns()
	renewed := make(chan []lease.Renewal, 1)
	go func() { renewed <- s.renewOften(ctx, due, t) }()
	if s.await(checks, t) {
		s.round, failed = nil, checks.failed()
	}
	close(t.over)
	return failed, <-renewed
}

// await waits until each address has had a turn, and for the checks unless the process
// is starved. It reports whether these are over.
func (s *serving) await(checks *checkRound, t *turns) (checked bool) {
	pulse := time.NewTimer(lease.Pulse)
	defer pulse.Stop()
	late, starved, done, one := time.Duration(0), false, checks.done, t.one
	for began := time.Now(); one != nil || done != nil && !starved; {
		select {
		case <-done:
			done = nil
		case <-one:
			one = nil
		case <-pulse.C:
			late += s.r.pulse(time.Since(began))
			if late >= roundLate && !starved {
				starved = true
				close(t.starved)
			}
			began = time.Now()
			pulse.Reset(lease.Pulse)
		}
	}
	select {
	case <-checks.done: // at the same time as something else
		return true
	default:
		return false
	}
}
