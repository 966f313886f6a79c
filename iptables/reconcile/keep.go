package reconcile

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
)

const (
	// lessLease is the time between two rounds without a lease.
	lessLease = time.Second

	// effectInterval is the time between two checks of the effect.
	effectInterval = time.Second
)

// keep holds an attached plan until the context ends. Several things go on at
// once, since none may wait for another: the lease is renewed after each round
// of checks that was answered; the effect is checked; what others take away
// is put back; devices and the load are watched.
func (s *serving) keep(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		every(ctx, effectInterval, nil, func(iptables.Change) {
			s.checkEffect(ctx)
			s.checkCause(ctx)
		})
	})
	wg.Go(func() {
		s.takeOver(ctx)
		every(ctx, s.r.cfg.Sync, s.r.cfg.Changes, func(c iptables.Change) { s.sync(ctx, c) })
	})
	wg.Go(func() { s.watchDevices(ctx) })
	crowded := func() { s.checkLoad(ctx, s.r.mu.TryLock) }
	s.r.crowded.Store(&crowded)
	defer s.r.crowded.CompareAndSwap(&crowded, nil)
	wg.Go(func() {
		every(ctx, lease.SampleInterval, nil, func(iptables.Change) {
			s.checkLoad(ctx, func() bool { s.r.mu.Lock(); return true })
		})
	})
	every(ctx, s.interval(), nil, func(iptables.Change) { s.renew(ctx) })
	s.leaveChecks()
}

// interval is the time between two rounds of checks and lease probes.
func (s *serving) interval() time.Duration {
	if s.plan.Lease == 0 {
		return lessLease
	}
	return s.plan.Lease / 5
}

// every calls f at each interval and at each change until the context ends.
func every(ctx context.Context, interval time.Duration, changes <-chan iptables.Change, f func(iptables.Change)) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			f(iptables.Change{})
		case c := <-changes:
			f(c)
		}
	}
}

// renew runs one round: checks, and at the same time lease probes to the addresses
// whose endpoints all answered the checks of the round before. One after the other
// they would take twice as long, which listeners that cannot keep up do not leave
// us.
func (s *serving) renew(ctx context.Context) {
	due := asked(&s.r.leases, func(*lease.Machine) []netip.Addr { return s.hold.Due(time.Now()) })
	failed, renewals := s.run(ctx, due)
	if ctx.Err() != nil {
		return
	}
	var round *lease.Round
	s.r.leases.tell(func(*lease.Machine) { round = s.hold.Ended(time.Now(), failed, renewals) })
	for _, b := range round.Blocked {
		s.r.cfg.Log.Warningf("%s: detached, %s: %v", b.Addr, whereTo(b.Why), b.Why)
	}
	if len(round.Lapsed) > 0 {
		s.lapse(round)
	}
	switch e := round.Over; {
	case e != nil:
		s.r.cfg.Log.Infof("%s: attached again, after %s in which leases ran out %d times", addressList(e.Addrs), e.Lasted.Round(time.Millisecond), e.Lapses)
	case len(round.Again) > 0 && !round.InEpisode():
		s.r.cfg.Log.Infof("%s: attached again", addressList(round.Again))
	}
	s.r.leases.tell(func(*lease.Machine) {
		if ctx.Err() == nil {
			round.Settle(time.Now())
		}
	})
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
		s.r.leases.tell(func(*lease.Machine) { wait = round.Explain(time.Now(), load.Cause(), why) })
		where := "went to the cluster"
		if wait > 0 {
			where = "goes to the cluster for " + wait.String()
		}
		s.r.cfg.Log.Warningf("%s: the lease ran out (%s since it was renewed), DNS %s: %v", addressList(round.LapsedAddrs()), worst.Late.Round(time.Millisecond), where, why)
	}
	var yield []netip.Addr
	s.r.leases.tell(func(*lease.Machine) { yield = round.Yield(time.Now()) })
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
		s.r.leases.tell(func(*lease.Machine) { may = s.hold.MayCheckEffect(time.Now(), a) })
		if !may {
			continue
		}
		began := time.Now()
		err := s.checker.Effect(ctx, a)
		if ctx.Err() != nil {
			return
		}
		var effect lease.Effect
		s.r.leases.tell(func(*lease.Machine) { effect = s.hold.EffectChecked(began, time.Now(), a, err) })
		switch effect {
		case lease.Restored:
			s.r.cfg.Log.Infof("%s: the rules have their effect again", a)
		case lease.Defeated:
			if why := s.r.explain(ctx, a); why != "" {
				err = fmt.Errorf("%w; %s", err, why)
			}
			s.r.leases.tell(func(*lease.Machine) { s.hold.EffectDefeated(a, err) })
			s.r.cfg.Log.Warningf("%s: the rules are in force without effect: %v", a, err)
		}
	}
}

// checkCause finds out, once for each time, what of others may keep our checks
// from being answered. It reads all their rules, and so waits until a lapse that is
// over by itself would be.
func (s *serving) checkCause(ctx context.Context) {
	var due bool
	s.r.leases.tell(func(m *lease.Machine) {
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
	s.r.leases.tell(func(m *lease.Machine) { m.FoundCause(cause) })
	return cause
}

// explain names what of others defeats the rules for an address, if it is known.
func (r *Reconciler) explain(ctx context.Context, a netip.Addr) string {
	if ctx.Err() != nil {
		return ""
	}
	return r.cfg.Kernel.Explain(a)
}

// checkAll runs one round of checks, for all addresses at once, and returns
// what went wrong by address.
func (s *serving) checkAll(ctx context.Context) map[netip.Addr]error {
	var (
		mu   sync.Mutex
		wg   sync.WaitGroup
		errs = map[netip.Addr]error{}
	)
	for _, a := range s.plan.Addresses() {
		wg.Go(func() {
			for _, e := range s.plan.Listen {
				if e.Addr != a {
					continue
				}
				if err := s.checker.Check(ctx, e); err != nil {
					mu.Lock()
					errs[a] = fmt.Errorf("%s does not answer: %w", e, err)
					mu.Unlock()
					return
				}
			}
		})
	}
	wg.Wait()
	return errs
}

// prober sends lease probes.
type prober struct {
	token chan struct{} // held while lease probes are under way
}

// wait returns when no lease probe is under way.
func (p *prober) wait() {
	p.token <- struct{}{}
	<-p.token
}

// renewAll renews the leases of addresses, or attaches them where there is no lease.
func (s *serving) renewAll(ctx context.Context, addrs []netip.Addr) []lease.Renewal {
	return s.renewOften(ctx, addrs, newTurns())
}

// renewOften does so for all the addresses at once: one that has to find another port,
// as when another instance comes, must not cost the others their leases.
func (s *serving) renewOften(ctx context.Context, addrs []netip.Addr, t *turns) []lease.Renewal {
	if s.plan.Lease > 0 {
		s.r.probes.token <- struct{}{}
		defer func() { <-s.r.probes.token }()
	}
	out := make([]lease.Renewal, len(addrs))
	var all, first sync.WaitGroup
	for i, a := range addrs {
		first.Add(1)
		all.Go(func() {
			answered, err := s.renewOne(ctx, a)
			out[i] = lease.Renewal{Addr: a, Answered: answered, Err: err}
			first.Done()
			for t.another(s.interval()) {
				if again, err := s.renewOne(ctx, a); err == nil {
					out[i] = lease.Renewal{Addr: a, Answered: again}
				}
			}
		})
	}
	first.Wait()
	t.hadOne()
	all.Wait()
	return out
}

func (s *serving) renewOne(ctx context.Context, a netip.Addr) (answered time.Time, err error) {
	began := time.Now()
	if s.plan.Lease == 0 {
		return began, s.attachAgain(ctx, a)
	}
	if err := s.mayProbe(a); err != nil {
		return began, err
	}
	if answered, err = s.checker.Renew(ctx, a); err != nil {
		return answered, err
	}
	if answered.Before(began) {
		began = answered // to an earlier probe
	}
	s.r.leases.tell(func(m *lease.Machine) { m.Probed(a, began, time.Now(), s.plan.Lease) })
	return answered, nil
}

// mayProbe returns nil unless the way to an address was found blocked since the round
// began, or the queries were left to the cluster's DNS.
func (s *serving) mayProbe(a netip.Addr) error {
	return asked(&s.r.leases, func(m *lease.Machine) error { return m.MayProbe(time.Now(), s.plan, a) })
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
