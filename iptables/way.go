package iptables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// wayInterval is the time between two looks at the way while we are not
// attached. The look costs more than a round of checks.
const wayInterval = time.Second

// makeWay lets untracked DNS pass the filter chains of others and remembers for
// which addresses of the plan that could not be done. Attached to these, we would
// take queries that never arrive.
func (k *Keeper) makeWay(r Rules) {
	if k.cfg.Kernel.MakeWay == nil || r.Plan.DryRun {
		return
	}
	blocked := k.cfg.Kernel.MakeWay(r)
	k.facts.Lock()
	defer k.facts.Unlock()
	k.blocked = blocked
}

// lookAtWay makes way for a plan that is prepared.
func (k *Keeper) lookAtWay(ctx context.Context, n *watch) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if ctx.Err() == nil && k.next == n {
		k.makeWay(k.installed[n.backend])
	}
}

// blockedOf returns why untracked DNS does not pass, by address. Without a lease
// all addresses are live or none is.
func (k *Keeper) blockedOf(p Plan) map[netip.Addr]error {
	k.facts.Lock()
	defer k.facts.Unlock()
	out := map[netip.Addr]error{}
	for _, a := range p.Addresses() {
		if err := k.blocked[a]; err != nil {
			out[a] = err
		} else if p.Lease == 0 && len(k.blocked) > 0 {
			out[a] = firstError(k.blocked)
		}
	}
	return out
}

// obstructed takes the addresses to which the way is blocked out of the errors
// of a round of checks, and returns what keeps a plan from being attached.
func (k *Keeper) obstructed(p Plan, failed map[netip.Addr]error) error {
	blocked := k.blockedOf(p)
	if len(blocked) == len(p.Addresses()) {
		return firstError(blocked)
	}
	for a := range blocked {
		delete(failed, a)
	}
	return firstError(failed)
}

// standBack gives the queries to an address back to the cluster since nothing of
// them would arrive here.
func (k *Keeper) standBack(w *watch, a netip.Addr, why error) error {
	k.cfg.Log.Warningf("%s: detached, %s: %v", a, whereTo(why), why)
	if w.plan.Lease > 0 {
		return nil // it runs out
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.detach(w.backend)
}

// whereTo says where DNS goes while that is in the way.
func whereTo(why error) string {
	if errors.Is(why, ErrUntracked) {
		return "DNS comes here all the same"
	}
	return "DNS goes to the cluster"
}

// explained adds to an error what of somebody else it comes from.
func (k *Keeper) explained(ctx context.Context, a netip.Addr, err error) error {
	if k.cfg.Kernel.Explain == nil || err == nil || ctx.Err() != nil {
		return err
	}
	if why := k.cfg.Kernel.Explain(a); why != "" {
		return fmt.Errorf("%w; %s", err, why)
	}
	return err
}
