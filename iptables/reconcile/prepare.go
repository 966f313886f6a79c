package reconcile

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
	"github.com/trackless-dns/trackless/iptables/reconcile/shared"
)

const (
	// attachInterval is the time between two rounds of checks while detached:
	// rules are due within a second of the listeners answering.
	attachInterval = 100 * time.Millisecond

	// complainAfter is how long the listeners may stay silent before the log
	// says so. A start takes well under a second.
	complainAfter = 5 * time.Second
)

// Prepare puts the plan's addresses on the node and installs everything but
// the query rules of what is new. What is attached stays so. On an error the
// node is as it was before. If another program holds the lock of the rules, they
// are retried until it releases it, since the listeners can do without.
//
// The plan is normalized, and Validate has nothing to say against it: whoever
// reads the configuration sees to both, and can name the line.
func (r *Reconciler) Prepare(p iptables.Plan, c Checker) error { return r.PrepareOn(r.Backend(), p, c) }

// PrepareOn is Prepare with another backend. It takes over from the one in
// force when the plan attaches: there is no moment without the rules of either.
func (r *Reconciler) PrepareOn(b iptables.Backend, p iptables.Plan, c Checker) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leaving || r.closed {
		return errLeaving
	}
	if r.current != nil && p.Link != r.current.plan.Link {
		return fmt.Errorf("interface %s: the interface cannot change from %s without a restart", p.LinkName(), r.current.plan.LinkName())
	}
	if r.next != nil {
		// An earlier change that was neither committed nor rolled back.
		if err := r.abandon(); err != nil {
			return err
		}
	}
	if err := r.cfg.Addresses.Ensure(p.Addresses()); err != nil {
		return err
	}
	n := &serving{r: r, plan: p, backend: b, checker: c}
	if err := n.prepare(); err != nil {
		return errors.Join(err, c.Close(), r.restore(b))
	}
	r.next = n
	r.publish()
	return nil
}

// prepare installs what a plan needs before its listeners are opened. Its addresses
// are on the node.
func (s *serving) prepare() (err error) {
	if s.checks, s.leases, err = s.checker.Reserve(s.plan.Addresses()); err != nil {
		return err
	}
	err = s.r.rules.install(s.backend, s.r.current, s)
	if errors.Is(err, iptables.ErrBusy) {
		s.r.cfg.Log.Warningf("the rules come later: %v", err)
		s.late, err = true, nil
	}
	if err == nil {
		err = s.r.ensureAgain(s.plan)
	}
	if err != nil {
		return err
	}
	return s.r.cfg.Kernel.Purge(s.plan.Listen)
}

// Commit waits in the background until every listen endpoint of the prepared
// plan answers, attaches then, and keeps it so.
func (r *Reconciler) Commit() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next == nil || r.next.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := r.next
	n.cancel, n.done = cancel, make(chan struct{})
	go func() {
		defer close(n.done)
		defer cancel()
		if n.attachWhenAnswering(ctx) {
			n.keep(ctx)
		}
	}()
}

// attachWhenAnswering checks all endpoints until each has answered, then
// attaches, trying again if the kernel refuses. It reports whether it did.
func (s *serving) attachWhenAnswering(ctx context.Context) bool {
	complain := time.NewTimer(complainAfter)
	defer complain.Stop()
	poll := time.NewTicker(attachInterval)
	defer poll.Stop()
	var pathChecked time.Time
	for {
		if time.Since(pathChecked) >= pathInterval {
			s.checkPathOf(ctx)
			pathChecked = time.Now()
		}
		attached, why := s.tryToAttach(ctx)
		if why == nil {
			return attached
		}
		s.r.leases.Tell(func(m *lease.Machine) { m.Failing(why) })
		select {
		case <-ctx.Done():
			return false
		case <-complain.C:
			s.findCause(ctx)
			s.r.cfg.Log.Warningf("the rules wait, %s: %v", whereTo(why), s.r.Standing().Reason)
		case <-poll.C:
		}
	}
}

// tryToAttach attaches a plan if all its endpoints answer. It reports false if the
// plan was given up meanwhile.
func (s *serving) tryToAttach(ctx context.Context) (bool, error) {
	if err := s.installLate(ctx); err != nil {
		return false, err
	}
	failed := s.checkAll(ctx, nil)
	if err := shared.Ask(&s.r.leases, func(m *lease.Machine) error { return m.MayStart(s.plan, failed) }); err != nil {
		return false, err
	}
	return s.attach(ctx)
}

// installLate installs what Prepare could not. Without it our own checks are
// rewritten like anybody's queries, and somebody else answers them.
func (s *serving) installLate(ctx context.Context) error {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if !s.late || ctx.Err() != nil || s.r.next != s {
		return nil
	}
	if err := s.r.rules.install(s.backend, s.r.current, s); err != nil {
		return err
	}
	s.late = false
	return s.r.ensureAgain(s.plan)
}

// ensureAgain puts back addresses that an instance took along which ended meanwhile:
// it could not see that we ask for them before our rules said so.
func (r *Reconciler) ensureAgain(p iptables.Plan) error {
	missing, err := r.cfg.Addresses.Missing(p.Addresses())
	if err != nil || len(missing) == 0 {
		return err
	}
	return r.cfg.Addresses.Ensure(p.Addresses())
}

// attach makes the prepared plan the committed one and untracks its queries.
// It reports false if the plan was given up meanwhile.
func (s *serving) attach(ctx context.Context) (bool, error) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if ctx.Err() != nil || s.r.next != s {
		return false, nil
	}
	if err := s.r.rules.install(s.backend, s); err != nil {
		return false, err
	}
	replaces := s.r.current != nil && s.r.current.backend != s.backend
	if s.r.current == nil || s.r.State() != Attached || replaces {
		if err := s.r.rules.exempt(s); err != nil {
			return false, err
		}
	}
	renewed, taken, err := s.take(ctx)
	if err != nil {
		return false, err
	}
	if replaces {
		if err := s.r.rules.exemptOnly(s); err != nil {
			return false, err
		}
	}
	old := s.r.current
	s.r.current, s.r.next = s, nil
	s.r.publish()
	s.r.leases.Tell(func(m *lease.Machine) { s.hold = m.Start(time.Now(), s.plan, renewed, taken) })
	if err := s.r.finish(old, s); err != nil {
		s.r.cfg.Log.Warningf("attached, but cleaning up after the former configuration failed: %v", err)
	}
	s.logAttached()
	return true, nil
}

// take untracks the queries of a plan that has answered, if they may be taken. It
// returns when the answers came that renewed the leases.
func (s *serving) take(ctx context.Context) (renewed map[netip.Addr]time.Time, taken bool, err error) {
	s.r.load.measure(s.plan, &s.r.leases) // before the queries of a busy node come all at once
	switch {
	case s.plan.DryRun || !s.r.mayTake():
		return nil, false, nil
	case s.plan.Lease == 0:
		err := s.backend.Attach()
		return nil, err == nil, err
	}
	blocked := s.r.blocked(s.plan)
	free := slices.DeleteFunc(s.plan.Addresses(), func(a netip.Addr) bool { return blocked[a] != nil })
	renewed = map[netip.Addr]time.Time{}
	for _, p := range s.probe(ctx, free) {
		if p.Err != nil {
			return nil, false, fmt.Errorf("%s: lease probe: %w", p.Addr, p.Err)
		}
		renewed[p.Addr] = p.Answered
	}
	return renewed, true, nil
}

// finish takes away what a plan before the one in force had and nobody needs any
// more.
func (r *Reconciler) finish(old, n *serving) (err error) {
	if old != nil {
		r.retire(old)
		err = old.checker.Close()
		if old.backend != n.backend {
			err = errors.Join(err, r.rules.retire(old.backend))
		}
	}
	if n.plan.DryRun {
		err = errors.Join(err, n.untrackNothing())
	}
	return errors.Join(err, r.cfg.Addresses.Release(n.plan.Addresses()))
}

func (s *serving) logAttached() {
	addrs := figure.Joined(s.plan.Addresses())
	switch {
	case s.plan.DryRun:
		s.r.cfg.Log.Infof("dry-run: queries to %s are counted, nothing is untracked (%s)", addrs, s.backend.Name())
	case s.r.leases.View().ByHand():
		s.r.cfg.Log.Infof("ready, and still detached by hand: DNS to %s goes to the cluster until it is attached by hand", addrs)
	case !s.r.mayTake():
		s.r.cfg.Log.Infof("ready, and DNS to %s goes to the cluster still: %v", addrs, s.r.Standing().Reason)
	default:
		s.r.cfg.Log.Infof("attached: DNS to %s is untracked (%s)", addrs, s.backend.Name())
	}
}

// untrackNothing ends what a plan before a dry run may have begun: addresses that
// are live would be attached again as soon as the dry run is over, and responses
// that left since its rules came have made entries.
func (s *serving) untrackNothing() error {
	s.r.leases.Tell(func(m *lease.Machine) { m.Stop(time.Now()) })
	return errors.Join(s.r.rules.detach(s.backend, s.r.listen()), s.r.cfg.Kernel.Purge(s.plan.Listen))
}

// retire ends the goroutine of a plan. The lock is held; the goroutine may be
// waiting for it.
func (r *Reconciler) retire(s *serving) {
	if s.cancel == nil {
		return
	}
	s.cancel()
	r.mu.Unlock()
	<-s.done
	r.mu.Lock()
}

// Rollback forgets the prepared plan and returns to the committed one.
func (r *Reconciler) Rollback() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next == nil {
		return nil
	}
	return r.abandon()
}

// abandon cancels the prepared change. The lock is held.
func (r *Reconciler) abandon() error {
	n := r.next
	r.next = nil
	r.publish()
	r.retire(n)
	return errors.Join(n.checker.Close(), r.restore(n.backend))
}

// restore makes the kernel's state that of the committed plan, after one on a
// backend was given up.
func (r *Reconciler) restore(b iptables.Backend) error {
	if r.current == nil {
		return r.rules.remove(b)
	}
	var err error
	if b != r.current.backend {
		err = r.rules.retire(b)
	}
	return errors.Join(err, r.rules.install(r.current.backend, r.current), r.cfg.Addresses.Release(r.current.plan.Addresses()))
}
