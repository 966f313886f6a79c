package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/iptables"
)

// keep holds an attached plan until the context ends. Three things go on at
// once, since none may wait for another: the lease is renewed after each round
// of checks that was answered; the effect is looked at; what others take away
// is put back.
func (k *Reconciler) keep(ctx context.Context, w *watch) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		failing := map[netip.Addr]time.Time{}
		every(ctx, effectInterval, nil, func(iptables.Change) {
			k.lookAtEffect(ctx, w, failing)
			k.lookForCause(ctx, w)
		})
	})
	wg.Go(func() {
		k.takeOver(ctx, w)
		every(ctx, k.cfg.Sync, k.cfg.Changes, func(c iptables.Change) { k.reconcile(ctx, w, c) })
	})
	wg.Go(func() { k.watchDevices(ctx, w) })
	crowded := func() { k.lookAtLoad(ctx, w, k.mu.TryLock) }
	k.crowded.Store(&crowded)
	defer k.crowded.CompareAndSwap(&crowded, nil)
	wg.Go(func() {
		every(ctx, lookInterval, nil, func(iptables.Change) {
			k.lookAtLoad(ctx, w, func() bool { k.mu.Lock(); return true })
		})
	})
	interval := w.plan.Lease / 5
	if interval == 0 {
		interval = lessLease
	}
	h := newHolder(w, k.waiting() != nobody)
	every(ctx, interval, nil, func(iptables.Change) { k.renew(ctx, w, h) })
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

// holder remembers, for each address, when its lease was renewed, and how often
// it ran out.
type holder struct {
	lease   time.Duration
	renewed map[netip.Addr]time.Time // when the probe was answered: the lease lasts from then on
	failed  map[netip.Addr]error     // why the last round did not renew it
	down    map[netip.Addr]bool      // out of lease, and said so; or not to be held
	lapsed  time.Time                // when one ran out last that was not the consequence of another

	// What the checks of the last round found, by address, and when they ended.
	checks  map[netip.Addr]error
	checked time.Time
}

func newHolder(w *watch, waiting bool) *holder {
	// The plan attached when its checks were answered.
	h := &holder{lease: w.plan.Lease, renewed: w.renewed, failed: map[netip.Addr]error{}, down: map[netip.Addr]bool{}, checked: time.Now()}
	for _, a := range w.plan.Addresses() {
		h.down[a] = waiting || w.plan.Lease > 0 && h.renewed[a].IsZero() // not taken yet
	}
	return h
}

// giveUp is for what is not to be held for the time being: that is no lapse.
func (h *holder) giveUp(addrs []netip.Addr) {
	for _, a := range addrs {
		h.down[a], h.failed[a] = true, nil
	}
}

// mayRenew reports whether the lease of an address may be renewed: the last round
// of checks was answered, and not too long ago.
func (h *holder) mayRenew(a netip.Addr, now time.Time, waiting waiters) bool {
	if waiting == everybody || h.down[a] && waiting == lapsedOnes {
		return false
	}
	return h.checks[a] == nil && (h.lease == 0 || now.Sub(h.checked) <= h.lease)
}

// renew runs one round: checks, and at the same time lease probes to the addresses
// whose endpoints all answered the checks of the round before. One after the other
// they would take twice as long, which listeners that cannot keep up do not leave
// us.
func (k *Reconciler) renew(ctx context.Context, w *watch, h *holder) {
	var due []netip.Addr
	if !w.plan.DryRun && !k.given.back() {
		blocked, waiting := k.blockedOf(w.plan), k.waiting()
		for _, a := range w.plan.Addresses() {
			if blocked[a] == nil && h.mayRenew(a, time.Now(), waiting) {
				due = append(due, a)
			}
		}
	}
	var renewals []renewal
	var wg sync.WaitGroup
	wg.Go(func() { renewals = k.renewAll(ctx, w, due) })
	failed := checkAll(ctx, w)
	wg.Wait()
	if ctx.Err() != nil {
		return
	}
	h.checks, h.checked = failed, time.Now()
	if w.plan.DryRun || k.given.back() {
		h.giveUp(w.plan.Addresses())
		return
	}
	var r round
	if k.waiting() == everybody {
		h.giveUp(w.plan.Addresses())
	} else if r = k.judge(w, h, renewals); len(r.lapsed) > 0 {
		k.lapse(w, h, &r)
	}
	if len(r.again) > 0 {
		k.cfg.Log.Infof("%s: attached again", addressList(r.again))
	}
	k.facts.Lock()
	defer k.facts.Unlock()
	if ctx.Err() != nil || k.given.back() {
		return
	}
	k.cover(r.live)
	k.reason = firstError(h.failed)
	if len(r.live) > 0 {
		k.enter(Attached)
	} else {
		k.enter(Detached)
	}
}

// round is what became of the leases in one round.
type round struct {
	live   []netip.Addr // held
	again  []netip.Addr // of these those that were not
	lapsed []lapse
}

// lapse is a lease that ran out.
type lapse struct {
	addr netip.Addr
	late time.Duration // since it was renewed
	why  error
}

// judge looks which leases were renewed. A probe that was answered too late has taken
// the lease anew: that is a lapse, whatever the reason.
func (k *Reconciler) judge(w *watch, h *holder, renewals []renewal) (r round) {
	lapsed := func(a netip.Addr, now time.Time, why error) {
		late := now.Sub(h.renewed[a])
		if h.lease == 0 || late <= h.lease || h.down[a] {
			return
		}
		h.down[a] = true
		r.lapsed = append(r.lapsed, lapse{a, late, why})
	}
	blocked := k.blockedOf(w.plan)
	for _, a := range w.plan.Addresses() {
		if blocked[a] != nil {
			if !h.down[a] || h.failed[a] == nil || h.failed[a].Error() != blocked[a].Error() {
				k.cfg.Log.Warningf("%s: detached, %s: %v", a, whereTo(blocked[a]), blocked[a])
			}
			h.down[a], h.failed[a] = true, blocked[a]
			continue
		}
		i := slices.IndexFunc(renewals, func(r renewal) bool { return r.addr == a })
		if i < 0 || renewals[i].err != nil {
			why := h.checks[a]
			if i >= 0 {
				why = fmt.Errorf("the lease probe was not answered: %w", renewals[i].err)
			}
			lapsed(a, time.Now(), because(why, h.failed[a]))
			h.failed[a] = why
			if !h.down[a] {
				r.live = append(r.live, a)
			}
			continue
		}
		lapsed(a, renewals[i].answered, because(h.failed[a]))
		if h.down[a] {
			r.again = append(r.again, a)
		}
		h.renewed[a], h.down[a], h.failed[a] = renewals[i].answered, false, h.checks[a]
		r.live = append(r.live, a)
	}
	return r
}

// because returns the first reason there is.
func because(reasons ...error) error {
	for _, err := range reasons {
		if err != nil {
			return err
		}
	}
	return errors.New("this process did not run in time")
}

// renewal is what became of a lease probe.
type renewal struct {
	addr     netip.Addr
	answered time.Time
	err      error
}

// renewAll renews the leases of all the addresses at once: a probe that has to find
// another port, as when another instance comes, must not cost the others theirs.
func (k *Reconciler) renewAll(ctx context.Context, w *watch, addrs []netip.Addr) []renewal {
	if w.plan.Lease > 0 {
		k.probing <- struct{}{}
		defer func() { <-k.probing }()
	}
	out := make([]renewal, len(addrs))
	var wg sync.WaitGroup
	for i, a := range addrs {
		wg.Go(func() {
			began := time.Now()
			answered, err := k.renewOne(ctx, w, a)
			if err == nil {
				k.leased(a, began, time.Now(), w.plan.Lease)
			}
			out[i] = renewal{a, answered, err}
		})
	}
	wg.Wait()
	return out
}

// errWaits says that queries were given to the cluster's DNS since a round began.
var errWaits = errors.New("queries are left to the cluster's DNS")

// renewOne takes the lease of an address again, unless the way to it was found
// blocked since the round began, or the queries were given to the cluster's DNS.
func (k *Reconciler) renewOne(ctx context.Context, w *watch, a netip.Addr) (time.Time, error) {
	now := time.Now()
	if w.plan.Lease > 0 {
		if why := k.blockedOf(w.plan)[a]; why != nil {
			return now, why
		}
		if k.waiting() == everybody {
			return now, errWaits
		}
		return w.checker.Renew(ctx, a)
	}
	if k.Covers(a) {
		return now, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if ctx.Err() != nil {
		return now, ctx.Err()
	}
	if why := k.blockedOf(w.plan)[a]; why != nil {
		return now, why
	}
	if k.waiting() == everybody {
		return now, errWaits
	}
	return now, w.backend.Attach()
}

// lookAtEffect asks as any client would, and says once when that goes wrong
// and once when it goes right again. Others are to blame only if it goes wrong
// twice while we hold the lease and go on to renew it: not for a lapse of ours, nor
// when we hang. failing holds when a look first went wrong.
func (k *Reconciler) lookAtEffect(ctx context.Context, w *watch, failing map[netip.Addr]time.Time) {
	for _, a := range w.plan.Addresses() {
		if !k.Covers(a) {
			delete(failing, a)
			k.forgetEffect(a)
			continue
		}
		if w.plan.Lease > 0 && !k.held(a) {
			continue // it would leave an entry, as any query does now
		}
		began := time.Now()
		err := w.checker.Effect(ctx, a)
		switch first, again := failing[a]; {
		case ctx.Err() != nil:
			return
		case err == nil:
			delete(failing, a)
		case !again || w.plan.Lease > 0 && !k.heldSince(a, first, w.plan.Lease):
			failing[a] = began
			continue
		case !k.Covers(a): // given back meanwhile
			continue
		}
		k.facts.Lock()
		before := k.effect[a]
		k.facts.Unlock()
		switch {
		case err != nil && before == nil:
			err = k.explained(ctx, a, err)
		case err != nil:
			err = before // explained
		}
		k.facts.Lock()
		k.noteEffect(a, err)
		k.facts.Unlock()
		switch {
		case err != nil && before == nil:
			k.cfg.Log.Warningf("%s: the rules are in force without effect: %v", a, err)
		case err == nil && before != nil:
			k.cfg.Log.Infof("%s: the rules have their effect again", a)
		}
	}
}

// lookForCause finds out, once for each time, what of others may keep our checks
// from being answered. It reads all their rules, and so waits until a lapse that is
// over by itself would be.
func (k *Reconciler) lookForCause(ctx context.Context, w *watch) {
	k.facts.Lock()
	down := k.state == Detached && k.reason != nil && !k.given.back()
	due := down && k.cause == "" && time.Since(k.since) >= complainAfter && time.Since(k.since) < complainAfter+2*effectInterval
	if !down {
		k.cause = ""
	}
	k.facts.Unlock()
	if !due {
		return
	}
	k.findCause(ctx, w)
	k.facts.Lock()
	cause := k.cause
	k.facts.Unlock()
	if cause != "" {
		k.cfg.Log.Warningf("still detached: %v", k.Standing().Reason)
	}
}

// findCause looks for what of others may be why a plan is not attached.
func (k *Reconciler) findCause(ctx context.Context, w *watch) {
	addrs := w.plan.Addresses()
	if k.cfg.Kernel.Explain == nil || len(addrs) == 0 || ctx.Err() != nil || len(k.blockedOf(w.plan)) > 0 {
		return
	}
	k.setCause(k.cfg.Kernel.Explain(addrs[0]))
}

func (k *Reconciler) setCause(why string) {
	k.facts.Lock()
	defer k.facts.Unlock()
	k.cause = why
}

// forgetEffect is for an address whose rules are not in force, so that nothing is
// known of their effect.
func (k *Reconciler) forgetEffect(a netip.Addr) {
	k.facts.Lock()
	defer k.facts.Unlock()
	delete(k.effect, a)
	k.publishEffect()
}

// tenure is the time for which the lease of an address is known to be held.
type tenure struct{ since, until time.Time }

// leased notes that a lease probe, which left at one time, was answered at another.
// The lease lasts from somewhere between the two on.
func (k *Reconciler) leased(a netip.Addr, began, ended time.Time, lease time.Duration) {
	k.facts.Lock()
	defer k.facts.Unlock()
	t := k.tenures[a]
	if t.until.Before(ended) {
		t.since = ended
	}
	k.tenures[a] = tenure{since: t.since, until: began.Add(lease)}
}

// held reports whether the lease of an address is known to be held now.
func (k *Reconciler) held(a netip.Addr) bool {
	k.facts.Lock()
	defer k.facts.Unlock()
	return time.Now().Before(k.tenures[a].until)
}

// heldSince reports whether the lease of an address was held from the given time
// until now, and a lease probe that left after it was answered. If in doubt it
// was not.
func (k *Reconciler) heldSince(a netip.Addr, began time.Time, lease time.Duration) bool {
	k.facts.Lock()
	defer k.facts.Unlock()
	t := k.tenures[a]
	return !t.since.After(began) && time.Now().Before(t.until) && t.until.Add(-lease).After(began)
}

// Reasons of repairs, as the metric's label has them.
const (
	RepairAddress = "address"
	RepairLink    = "link"
	RepairRules   = "rules"
)

// takeOver adopts what a predecessor left as soon as our own rules are in force. It
// may be rules by the ten thousand, so the lease is renewed meanwhile.
func (k *Reconciler) takeOver(ctx context.Context, w *watch) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if ctx.Err() == nil && k.current == w {
		k.adopt(w)
	}
}

// reconcile puts back what others took away.
func (k *Reconciler) reconcile(ctx context.Context, w *watch, c iptables.Change) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if ctx.Err() != nil || k.current != w {
		return
	}
	defer k.synced(time.Now())
	// First the link: what is put on one that is down is of no use.
	if down, err := k.cfg.Addresses.Down(); err == nil && down && k.mayRepair("the link", c) {
		k.repaired(RepairLink, "the link", c, k.cfg.Addresses.SetUp())
	}
	missing, err := k.cfg.Addresses.Missing(w.plan.Addresses())
	if err == nil {
		// One by one: that somebody else holds one of them keeps nobody from
		// putting back the others.
		for _, a := range missing {
			if name := "address " + a.String(); k.mayRepair(name, c) {
				k.repaired(RepairAddress, name, c, k.cfg.Addresses.Ensure([]netip.Addr{a}))
			}
		}
	}
	if err := k.cfg.Addresses.PreferSource(); err != nil {
		k.cfg.Log.Warningf("keep the listen addresses from being a source: %v", err)
	}
	// Uplinks come and go with routes.
	r, err := k.rules(w.backend, w, k.next)
	if err == nil {
		// Before the rules: that these are gone costs nobody a query.
		k.makeWay(r)
	}
	present, presentErr := w.backend.Present()
	if presentErr == nil && !present && k.mayRepair("the table", c) {
		err := k.install(w.backend, w, k.next)
		if err == nil && w.plan.Lease == 0 && !k.given.back() && k.waiting() == nobody && !w.plan.DryRun && len(k.blockedOf(w.plan)) == 0 {
			err = w.backend.Attach()
		}
		k.repaired(RepairRules, "the table", c, err)
		return
	}
	k.adopt(w)
	k.clearLeft(w)
	if err == nil && !reflect.DeepEqual(r, k.installed[w.backend]) {
		err = k.install(w.backend, w, k.next)
	}
	if err == nil && k.cfg.Kernel.Refresh != nil {
		err = k.cfg.Kernel.Refresh(r)
	}
	if err != nil {
		k.cfg.Log.Warningf("bring the rules up to date: %v", err)
	}
}

// clearLeft takes away addresses for which nobody asks any more: those of an
// instance that was killed, or of a version that left all of them to us. One that
// starts puts its addresses on the node a moment before its rules ask for them, so
// only those go that nobody has asked for since the sync before.
func (k *Reconciler) clearLeft(w *watch) {
	left, err := k.cfg.Addresses.Left(w.plan.Addresses())
	if k.next != nil {
		left = slices.DeleteFunc(left, func(a netip.Addr) bool { return slices.Contains(k.next.plan.Addresses(), a) })
	}
	now := time.Now()
	maps.DeleteFunc(k.left, func(a netip.Addr, _ time.Time) bool { return !slices.Contains(left, a) })
	var due []netip.Addr
	for _, a := range left {
		since, known := k.left[a]
		if !known {
			k.left[a] = now
		} else if now.Sub(since) >= k.cfg.Sync {
			due = append(due, a)
			delete(k.left, a)
		}
	}
	if err == nil && len(due) > 0 {
		if err = k.cfg.Addresses.Clear(due); err == nil {
			k.cfg.Log.Infof("took away %s, which another instance left and nobody asks for", addressList(due))
		}
	}
	if err != nil {
		k.cfg.Log.Warningf("take away the addresses that another instance left: %v", err)
	}
}

// synced notes what reconcile took.
func (k *Reconciler) synced(began time.Time) {
	k.facts.Lock()
	defer k.facts.Unlock()
	k.syncs++
	k.took += time.Since(began)
}

// repaired notes a repair, or says why it failed. That somebody else holds an
// address is said once, and no part of a fight: nothing was changed.
func (k *Reconciler) repaired(what, name string, c iptables.Change, err error) {
	f := k.fights[name]
	var held *iptables.HeldError
	switch {
	case errors.As(err, &held):
		if !f.held {
			k.cfg.Log.Warningf("put back %s%s: %v", name, after(c), err)
		}
		f.held = true
		return
	case err != nil:
		k.cfg.Log.Warningf("put back %s%s: %v", name, after(c), err)
	default:
		k.facts.Lock()
		k.repairs[what]++
		k.facts.Unlock()
		k.cfg.Log.Infof("put back %s%s", name, after(c))
	}
	f.recent, f.held = append(f.recent, time.Now()), false
}

func after(c iptables.Change) string {
	if c.Who == "" {
		return ""
	}
	return " after a change by " + c.Who
}

// fight remembers recent repairs of one thing, so that we never fight: three in
// a minute, and we leave it alone for a minute.
type fight struct {
	recent []time.Time
	until  time.Time
	held   bool // by somebody else, and said so
}

func (k *Reconciler) mayRepair(what string, c iptables.Change) bool {
	f := k.fights[what]
	if f == nil {
		f = &fight{}
		k.fights[what] = f
	}
	now := time.Now()
	if now.Before(f.until) {
		return false
	}
	f.recent = slices.DeleteFunc(f.recent, func(t time.Time) bool { return now.Sub(t) > time.Minute })
	if len(f.recent) >= 3 {
		f.recent, f.until = nil, now.Add(time.Minute)
		who := c.Who
		if who == "" {
			who = "somebody"
		}
		k.cfg.Log.Warningf("%s was put back three times within a minute and is gone again: %s takes it away; left alone for a minute", what, who)
		return false
	}
	return true
}
