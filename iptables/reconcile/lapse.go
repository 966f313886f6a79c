package reconcile

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/trackless-dns/trackless/iptables"
)

// waiters are the addresses whose queries are left to the cluster's DNS after lapses.
type waiters uint8

const (
	nobody     waiters = iota
	lapsedOnes         // those whose lease ran out
	everybody          // one process answers for all, and it is throttled
)

func (k *Reconciler) waiting() waiters {
	k.facts.Lock()
	defer k.facts.Unlock()
	switch {
	case !k.learned.waits(time.Now()):
		return nobody
	case k.learned.cause == Throttled:
		return everybody
	}
	return lapsedOnes
}

// endWait forgets what lapses have taught.
func (k *Reconciler) endWait() {
	k.facts.Lock()
	defer k.facts.Unlock()
	k.learned, k.waitsFor = backoff{}, nil
}

// Crowded is for a query that finds many others before it: it looks at the load in
// the place of the keeper's own goroutines, which have their turn after them. It does
// not wait for those who change what is attached.
func (k *Reconciler) Crowded() {
	if look := k.crowded.Load(); look != nil {
		(*look)()
	}
}

// lookAtLoad gives all queries to the cluster's DNS if too many are lost here to a CPU
// limit. In its own time the lease would run out, and they would be lost until then.
// lock takes the lock, or reports that it could not.
func (k *Reconciler) lookAtLoad(ctx context.Context, w *watch, lock func() bool) {
	p := k.feelPressure(w.plan)
	if !k.mayLeave(ctx, w, p) || !lock() {
		return
	}
	defer k.mu.Unlock()
	if !k.mayLeave(ctx, w, p) || k.current != w {
		return
	}
	addrs := w.plan.Addresses()
	wait := k.learn(time.Now(), Throttled, errors.New(p.explain()))
	k.facts.Lock()
	k.overloads++
	k.facts.Unlock()
	k.yieldTo(w, addrs)
	part, backlog := p.lost()
	k.cfg.Log.Warningf("%s: detached, DNS goes to the cluster for %s: %.0f %% of the queries were lost here, and others waited for %s: %s",
		addressList(addrs), wait, 100*part, backlog.Round(time.Millisecond), p.explain())
}

// mayLeave reports whether the load is a reason to leave what is attached.
func (k *Reconciler) mayLeave(ctx context.Context, w *watch, p pressure) bool {
	return p.overloaded() && !w.plan.DryRun && k.State() == Attached && k.waiting() != everybody && ctx.Err() == nil
}

// feelPressure looks at the load, if it is time to, and returns what the last two
// looks tell.
func (k *Reconciler) feelPressure(p iptables.Plan) pressure {
	k.looking.Lock()
	defer k.looking.Unlock()
	if k.cfg.Kernel.Load == nil || time.Since(k.pressure.last.at) < k.pressure.interval()/2 {
		return k.pressure
	}
	limit := k.pressure.last.load.Limit
	if k.pressure.note(time.Now(), k.cfg.Kernel.Load(p.Listen)) {
		k.cfg.Log.Infof("the CPU limit of this process has changed from %s to %s: the lapses before are forgotten", milliCPU(limit), milliCPU(k.pressure.last.load.Limit))
		k.endWait()
	}
	return k.pressure
}

// throttled reports whether the CPU limit was used up between the last two looks.
func (k *Reconciler) throttled() bool {
	k.looking.Lock()
	defer k.looking.Unlock()
	return k.pressure.cause() == Throttled
}

// lapse is for leases that ran out. Those of a moment later come from the same.
func (k *Reconciler) lapse(w *watch, h *holder, r *round) {
	k.lapses.Add(uint64(len(r.lapsed)))
	var addrs []netip.Addr
	worst := r.lapsed[0]
	for _, l := range r.lapsed {
		addrs = append(addrs, l.addr)
		if l.late > worst.late {
			worst = l
		}
	}
	now := time.Now()
	first := now.Sub(h.lapsed) > h.lease
	if !first {
		k.cfg.Log.Infof("%s: the lease ran out as well", addressList(addrs))
	} else {
		h.lapsed = now
		p := k.feelPressure(w.plan)
		p = p.sinceLapse()
		why := worst.why
		if explained := p.explain(); explained != "" {
			why = fmt.Errorf("%w; %s", why, explained)
		}
		where := "went to the cluster"
		if wait := k.learn(now, p.cause(), why); wait > 0 {
			where = "goes to the cluster for " + wait.String()
		}
		k.cfg.Log.Warningf("%s: the lease ran out (%s since it was renewed), DNS %s: %v", addressList(addrs), worst.late.Round(time.Millisecond), where, why)
	}
	switch k.waiting() {
	case nobody:
		return
	case everybody:
		addrs = w.plan.Addresses()
	}
	// Where somebody holds up the kernel, what was renewed too late runs out instead.
	if k.mu.TryLock() {
		k.yieldTo(w, addrs)
		k.mu.Unlock()
	}
	h.giveUp(addrs)
	down := func(a netip.Addr) bool { return h.down[a] }
	r.live, r.again = slices.DeleteFunc(r.live, down), slices.DeleteFunc(r.again, down)
}

// learn notes a lapse and returns for how long queries are left to the cluster's DNS.
func (k *Reconciler) learn(now time.Time, cause Cause, why error) time.Duration {
	k.facts.Lock()
	defer k.facts.Unlock()
	k.learned.lapsed(now, cause)
	k.waitsFor = fmt.Errorf("left to the cluster's DNS until %s (%s after lapse %d; `trackless rules attach` ends it): %w",
		k.learned.until.UTC().Format("15:04:05 MST"), k.learned.wait, k.learned.count, why)
	return k.learned.wait
}

// yieldTo leaves addresses to the cluster's DNS. The lock is held.
func (k *Reconciler) yieldTo(w *watch, addrs []netip.Addr) {
	if err := k.standBack(w.plan, addrs); err != nil {
		k.cfg.Log.Warningf("give the queries to %s back to the cluster: %v", addressList(addrs), err)
	}
}
