package reconcile

import (
	"context"
	"errors"
	"time"

	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
)

// errLeaving says that it is too late to switch by hand.
var errLeaving = errors.New("this instance is stopping: its rules are being taken away")

// DetachByHand leaves the queries to the cluster's DNS and returns when the
// queries that came before are answered. It lasts until AttachByHand or the end
// of the process.
func (r *Reconciler) DetachByHand() error {
	isNew, err := r.withhold(lease.ByHand, nil)
	if err != nil {
		return err
	}
	if isNew {
		r.cfg.Log.Infof("detached by hand: DNS goes to the cluster until it is attached by hand")
	}
	r.drain()
	return nil
}

// FailOver leaves the queries to the cluster's DNS, since what came here
// would not be answered. It lasts until FailBack or the end of the process, also
// over a change of plan. At a stop it does nothing: that leaves them as well.
func (r *Reconciler) FailOver(why error) error {
	isNew, err := r.withhold(lease.Unanswerable, why)
	if errors.Is(err, errLeaving) {
		return nil
	}
	if isNew && err == nil {
		r.cfg.Log.Warningf("detached, DNS goes to the cluster: %v", why)
	}
	return err
}

// withhold leaves the queries to the cluster's DNS for a reason, and reports whether
// it is new. What our listeners hold they still answer.
func (r *Reconciler) withhold(reason lease.Reason, why error) (isNew bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leaving {
		return false, errLeaving
	}
	var only bool
	// First, so that nothing is renewed from here on.
	r.leases.Tell(func(m *lease.Machine) { isNew, only = m.Withhold(reason, why) })
	if !isNew || !only {
		return isNew, nil
	}
	if err := r.rules.detach(r.Backend(), r.listen()); err != nil {
		r.leases.Tell(func(m *lease.Machine) { m.Allow(reason) })
		return isNew, err
	}
	r.rules.withheld = true
	r.leases.Tell(func(m *lease.Machine) { m.Withheld(time.Now()) })
	return isNew, nil
}

// AttachByHand ends what DetachByHand began, and a wait after lapses, and returns when
// queries are untracked again. If the context ends before, the reconciler goes on trying.
func (r *Reconciler) AttachByHand(ctx context.Context) error {
	if err := r.attachByHand(); err != nil {
		return err
	}
	if r.Standing().DryRun {
		return errors.New("dry-run: nothing is attached until the Corefile is loaded without it")
	}
	poll := time.NewTicker(attachInterval)
	defer poll.Stop()
	for r.State() != Attached {
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), r.Standing().Reason)
		case <-poll.C:
		}
		if r.leases.View().ByHand() {
			return errors.New("detached by hand once more, before it was attached")
		}
	}
	return nil
}

func (r *Reconciler) attachByHand() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leaving {
		return errLeaving
	}
	ended, err := r.allow(lease.ByHand, (*lease.Machine).EndWait)
	if ended {
		r.cfg.Log.Infof("to be attached again, by hand")
	}
	return err
}

// FailBack ends what FailOver began. Queries are untracked again as soon as the
// listeners answer.
func (r *Reconciler) FailBack() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leaving {
		return nil
	}
	ended, err := r.allow(lease.Unanswerable, func(*lease.Machine) {})
	if ended {
		r.cfg.Log.Infof("to be attached again: what came here would be answered")
	}
	return err
}

// allow ends a reason, and then tells the machine something more. If the reason was
// the last one, leases may be renewed again. It reports whether the reason was in
// force and has ended. The lock is held.
func (r *Reconciler) allow(reason lease.Reason, also func(*lease.Machine)) (ended bool, err error) {
	var inForce, last bool
	r.leases.Tell(func(m *lease.Machine) { inForce, last = m.Withholds(reason) })
	if last {
		if err := r.installLeases(); err != nil {
			return false, err
		}
	}
	// Last, since what answers is taken for attached from here on.
	r.leases.Tell(func(m *lease.Machine) {
		m.Allow(reason)
		also(m)
	})
	return inForce, nil
}

// installLeases lets leases be renewed again.
func (r *Reconciler) installLeases() error {
	r.rules.withheld = false
	if r.current == nil {
		return nil
	}
	if err := r.rules.install(r.current.backend, r.current, r.next); err != nil {
		r.rules.withheld = true
		return err
	}
	return nil
}
