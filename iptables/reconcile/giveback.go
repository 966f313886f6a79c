package reconcile

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// givenBack is why queries go to the cluster's DNS although we could take them.
// Either reason will do, and both must end before queries are taken again.
type givenBack struct {
	byHand  atomic.Bool           // until AttachByHand
	useless atomic.Pointer[error] // until TakeBack
}

func (g *givenBack) back() bool { return g.byHand.Load() || g.useless.Load() != nil }

// errLeaving says that it is too late to switch by hand.
var errLeaving = errors.New("this instance is stopping: its rules are being taken away")

// DetachByHand gives the queries back to the cluster's DNS and returns when the
// queries that came before are answered. It lasts until AttachByHand or the end
// of the process.
func (k *Reconciler) DetachByHand() error {
	if err := k.detachByHand(); err != nil {
		return err
	}
	k.drain()
	return nil
}

func (k *Reconciler) detachByHand() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	before := k.given.back()
	switch {
	case k.leaving:
		return errLeaving
	case k.given.byHand.Swap(true): // first, so that nothing is renewed from here on
		return nil
	}
	if err := k.giveBack(before); err != nil {
		k.given.byHand.Store(false)
		return err
	}
	k.cfg.Log.Infof("detached by hand: DNS goes to the cluster until it is attached by hand")
	return nil
}

// GiveBack gives the queries back to the cluster's DNS, since what came here
// would not be answered. It lasts until TakeBack or the end of the process, also
// over a change of plan. At a stop it does nothing: that gives them back as well.
func (k *Reconciler) GiveBack(why error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	before := k.given.back()
	if k.leaving || k.given.useless.Swap(&why) != nil {
		return nil
	}
	if err := k.giveBack(before); err != nil {
		k.given.useless.Store(nil)
		return err
	}
	k.cfg.Log.Warningf("detached, DNS goes to the cluster: %v", why)
	return nil
}

// giveBack takes the query rules away, unless that has been done before. What
// our listeners hold they still answer. The lock is held.
func (k *Reconciler) giveBack(before bool) error {
	if before {
		return nil
	}
	if err := k.detach(k.Backend()); err != nil {
		return err
	}
	k.bare = true
	k.released.Store(true)
	k.facts.Lock()
	defer k.facts.Unlock()
	k.cover(nil)
	k.enter(Detached)
	clear(k.tenures)
	return nil
}

// AttachByHand ends what DetachByHand began, and a wait after lapses, and returns when
// queries are untracked again. If the context ends before, the keeper goes on trying.
func (k *Reconciler) AttachByHand(ctx context.Context) error {
	if err := k.attachByHand(); err != nil {
		return err
	}
	if k.Standing().DryRun {
		return errors.New("dry-run: nothing is attached until the Corefile is loaded without it")
	}
	poll := time.NewTicker(attachInterval)
	defer poll.Stop()
	for k.State() != Attached {
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), k.Standing().Reason)
		case <-poll.C:
		}
		if k.given.byHand.Load() {
			return errors.New("detached by hand once more, before it was attached")
		}
	}
	return nil
}

func (k *Reconciler) attachByHand() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.leaving:
		return errLeaving
	case !k.given.byHand.Load():
		k.endWait()
		return nil
	}
	if err := k.takeBack(k.given.useless.Load() == nil); err != nil {
		return err
	}
	k.endWait()
	k.given.byHand.Store(false) // last, since what answers is taken for attached from here on
	k.cfg.Log.Infof("to be attached again, by hand")
	return nil
}

// TakeBack ends what GiveBack began. Queries are untracked again as soon as the
// listeners answer.
func (k *Reconciler) TakeBack() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.leaving || k.given.useless.Load() == nil {
		return nil
	}
	if err := k.takeBack(!k.given.byHand.Load()); err != nil {
		return err
	}
	k.given.useless.Store(nil)
	k.cfg.Log.Infof("to be attached again: what came here would be answered")
	return nil
}

// takeBack lets the lease be renewed again, if no other reason is left. The lock
// is held.
func (k *Reconciler) takeBack(last bool) error {
	if !last {
		return nil
	}
	k.bare = false
	if k.current != nil {
		if err := k.install(k.current.backend, k.current, k.next); err != nil {
			k.bare = true
			return err
		}
	}
	k.released.Store(false)
	return nil
}
