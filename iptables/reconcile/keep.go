package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
	"github.com/trackless-dns/trackless/iptables/reconcile/shared"
)

// keep holds an attached plan until the context ends. Several things go on at
// once, since none may wait for another: the lease is renewed while the endpoints
// answer; the effect is checked; what others take away is put back; devices and the
// load are watched.
func (s *serving) keep(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	s.changed.Store(true)
	r := newRounds(s)
	wg.Go(func() {
		r.effect.follow(ctx, func() {
			s.checkEffect(ctx)
			s.checkCause(ctx)
		})
	})
	wg.Go(func() {
		s.takeOver(ctx)
		s.followChanges(ctx, r)
	})
	wg.Go(func() { r.devices.watch(ctx, s) })
	crowded := func() { s.checkLoad(ctx, s.r.mu.TryLock) }
	s.r.crowded.Store(&crowded)
	defer s.r.crowded.CompareAndSwap(&crowded, nil)
	wg.Go(func() { r.load.follow(ctx, func() { s.watchLoad(ctx) }) })
	r.run(ctx)
	s.leaveChecks()
}

// followChanges puts back what others take away, when a change is announced and when the
// rounds say so, until the context ends.
func (s *serving) followChanges(ctx context.Context, r *rounds) {
	announced := func(c iptables.Change) {
		s.r.cfg.Kernel.Changed()
		s.changed.Store(true)
		r.settle.Store(true)
		s.sync(ctx, c)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.sync.due:
			s.sync(ctx, iptables.Change{})
		case c := <-s.r.cfg.Changes:
			announced(c)
		case <-r.found:
			announced(iptables.Change{})
		}
	}
}

// renew runs one round, and reports whether all that were asked answered.
//
// On a calm node an address is probed after its checks. On another the lease probes go
// to the addresses whose endpoints all answered the checks of the round before, while
// these are checked again: one after the other would take twice as long, which
// listeners that cannot keep up do not leave us.
func (s *serving) renew(ctx context.Context, calm bool) bool {
	due := shared.Ask(&s.r.leases, func(*lease.Machine) []netip.Addr { return s.hold.Due(time.Now()) })
	var failed map[netip.Addr]error
	var renewals []lease.Renewal
	if calm && s.plan.Lease > 0 && s.round == nil {
		failed, renewals = s.renewCalmly(ctx, due)
	} else {
		failed, renewals = s.run(ctx, due)
	}
	if ctx.Err() != nil {
		return true
	}
	var round *lease.Round
	s.r.leases.Tell(func(*lease.Machine) { round = s.hold.Ended(time.Now(), failed, renewals) })
	for _, b := range round.Blocked {
		s.r.cfg.Log.Warningf("%s: detached, %s: %v", b.Addr, whereTo(b.Why), b.Why)
	}
	if len(round.Lapsed) > 0 {
		s.lapse(round)
	}
	switch e := round.Over; {
	case e != nil:
		s.r.cfg.Log.Infof("%s: attached again, after %s in which leases ran out %d times", figure.Joined(e.Addrs), e.Lasted.Round(time.Millisecond), e.Lapses)
	case len(round.Again) > 0 && !round.InEpisode():
		s.r.cfg.Log.Infof("%s: attached again", figure.Joined(round.Again))
	}
	s.r.leases.Tell(func(*lease.Machine) {
		if ctx.Err() == nil {
			round.Settle(time.Now())
		}
	})
	return failed != nil && len(failed) == 0 && !slices.ContainsFunc(renewals, func(r lease.Renewal) bool { return r.Err != nil })
}

// lapse is for leases that ran out. Those of a moment later come from the same.
func (s *serving) lapse(round *lease.Round) {
	if round.First {
		load := s.r.load.measure(s.plan, &s.r.leases)
		load = load.SinceLapse()
		worst := round.Worst()
		why := worst.Why
		if explained := load.Explain(); explained != "" {
			why = fmt.Errorf("%w; %s", why, explained)
		}
		var wait time.Duration
		s.r.leases.Tell(func(*lease.Machine) { wait = round.Explain(time.Now(), load.Cause(), why) })
		where := "went to the cluster"
		if wait > 0 {
			where = "goes to the cluster for " + wait.String()
		}
		s.r.cfg.Log.Warningf("%s: the lease ran out (%s since it was renewed), DNS %s: %v", figure.Joined(round.LapsedAddrs()), worst.Late.Round(time.Millisecond), where, why)
	}
	var yield []netip.Addr
	s.r.leases.Tell(func(*lease.Machine) { yield = round.Yield(time.Now()) })
	// Where somebody holds up the kernel, what was renewed too late runs out instead.
	if len(yield) > 0 && s.r.mu.TryLock() {
		s.r.yieldTo(s.plan, yield)
		s.r.mu.Unlock()
	}
}

// checkEffect asks as any client would, and says once when that goes wrong
// and once when it goes right again.
func (s *serving) checkEffect(ctx context.Context) {
	for _, a := range s.plan.Addresses() {
		var may bool
		s.r.leases.Tell(func(*lease.Machine) { may = s.hold.MayCheckEffect(time.Now(), a) })
		if !may {
			continue
		}
		began := time.Now()
		err := s.checker.Effect(ctx, a)
		if ctx.Err() != nil {
			return
		}
		var effect lease.Effect
		s.r.leases.Tell(func(*lease.Machine) { effect = s.hold.EffectChecked(began, time.Now(), a, err) })
		switch effect {
		case lease.Restored:
			s.r.cfg.Log.Infof("%s: the rules have their effect again", a)
		case lease.Defeated:
			if why := s.r.explain(ctx, a); why != "" {
				err = fmt.Errorf("%w; %s", err, why)
			}
			s.r.leases.Tell(func(*lease.Machine) { s.hold.EffectDefeated(a, err) })
			s.r.cfg.Log.Warningf("%s: the rules are in force without effect: %v", a, err)
		}
	}
}

// checkCause finds out, once for each time, what of others may keep our checks
// from being answered. It reads all their rules, and so waits until a lapse that is
// over by itself would be.
func (s *serving) checkCause(ctx context.Context) {
	var due bool
	s.r.leases.Tell(func(m *lease.Machine) {
		due = m.CauseIsDue(time.Now(), complainAfter, complainAfter+2*effectInterval)
	})
	if due && s.findCause(ctx) != "" {
		s.r.cfg.Log.Warningf("still detached: %v", s.r.Standing().Reason)
	}
}

// findCause looks for what of others may be why a plan is not attached.
func (s *serving) findCause(ctx context.Context) (cause string) {
	addrs := s.plan.Addresses()
	if len(addrs) == 0 || len(s.r.blocked(s.plan)) > 0 {
		return ""
	}
	cause = s.r.explain(ctx, addrs[0])
	s.r.leases.Tell(func(m *lease.Machine) { m.FoundCause(cause) })
	return cause
}

// explain names what of others defeats the rules for an address, if it is known.
func (r *Reconciler) explain(ctx context.Context, a netip.Addr) string {
	if ctx.Err() != nil {
		return ""
	}
	return r.cfg.Kernel.Explain(a)
}

// checkAll checks the endpoints that are due, nil for all, at all addresses at once,
// and returns what went wrong by address.
func (s *serving) checkAll(ctx context.Context, due func(iptables.Endpoint) bool) map[netip.Addr]error {
	r := s.startChecks(ctx, due)
	<-r.done
	return r.failed()
}

// check checks the endpoints of one address that are due, nil for all.
func (s *serving) check(ctx context.Context, a netip.Addr, due func(iptables.Endpoint) bool) error {
	for _, e := range s.plan.Listen {
		if e.Addr != a || due != nil && !due(e) {
			continue
		}
		if err := s.checker.Check(ctx, e); err != nil {
			return fmt.Errorf("%s does not answer: %w", e, err)
		}
	}
	return nil
}

// prober sends lease probes.
type prober struct {
	mu    sync.Mutex
	under map[chan struct{}]struct{} // way; each is closed when its probes are over
}

// begin notes that probes are about to be sent, and returns what ends them.
func (p *prober) begin() (end func()) {
	over := make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.under == nil {
		p.under = map[chan struct{}]struct{}{}
	}
	p.under[over] = struct{}{}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.under, over)
		close(over)
	}
}

// wait returns when the lease probes that are under way now are over.
func (p *prober) wait() {
	p.mu.Lock()
	under := slices.Collect(maps.Keys(p.under))
	p.mu.Unlock()
	for _, over := range under {
		<-over
	}
}

// renewOften renews the leases as often as the addresses have turns. One that has to find
// another port, as when another instance comes, must not cost the others their leases.
func (s *serving) renewOften(ctx context.Context, addrs []netip.Addr, t *turns) []lease.Renewal {
	out := make([]lease.Renewal, len(addrs))
	var all, first sync.WaitGroup
	for i, a := range addrs {
		first.Add(1)
		all.Go(func() {
			out[i] = s.renewOne(ctx, a)
			first.Done()
			for t.another(lease.Hurried(s.plan.Lease)) {
				if again := s.renewOne(ctx, a); again.Err == nil {
					out[i] = again
				}
			}
		})
	}
	first.Wait()
	t.hadOne()
	all.Wait()
	return out
}

// renewOne renews the lease of an address, or attaches it where there is no lease.
func (s *serving) renewOne(ctx context.Context, a netip.Addr) lease.Renewal {
	if s.plan.Lease == 0 {
		return lease.Renewal{Addr: a, Answered: time.Now(), Err: s.attachAgain(ctx, a)}
	}
	return s.probe(ctx, []netip.Addr{a})[0]
}

// probe sends lease probes to addresses.
func (s *serving) probe(ctx context.Context, addrs []netip.Addr) (renewals []lease.Renewal) {
	defer s.r.probes.begin()()
	began := time.Now()
	var free []netip.Addr
	for _, a := range addrs {
		if err := s.mayProbe(a); err != nil {
			renewals = append(renewals, lease.Renewal{Addr: a, Answered: began, Err: err})
		} else {
			free = append(free, a)
		}
	}
	if len(free) == 0 {
		return renewals
	}
	s.checker.Renew(ctx, free, func(a netip.Addr, answered time.Time, err error) {
		if err == nil {
			sent := began
			if answered.Before(began) {
				sent = answered // the answer is to an earlier probe
			}
			s.r.leases.Tell(func(m *lease.Machine) { m.Probed(a, sent, time.Now(), s.plan.Lease) })
		}
		renewals = append(renewals, lease.Renewal{Addr: a, Answered: answered, Err: err})
	})
	return renewals
}

// mayProbe returns nil unless the way to an address was found blocked since the round
// began, or the queries were left to the cluster's DNS.
func (s *serving) mayProbe(a netip.Addr) error {
	return shared.Ask(&s.r.leases, func(m *lease.Machine) error { return m.MayProbe(time.Now(), s.plan, a) })
}

// attachAgain untracks the queries of a plan without a lease, unless they are.
func (s *serving) attachAgain(ctx context.Context, a netip.Addr) error {
	if s.r.Covers(a) {
		return nil
	}
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if err := errors.Join(ctx.Err(), s.mayProbe(a)); err != nil {
		return err
	}
	return s.backend.Attach()
}
