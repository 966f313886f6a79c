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

// wayInterval is the time between two looks at the way while we are not
// attached. The look costs more than a round of checks.
const wayInterval = time.Second

// makeWay lets untracked DNS pass the filter chains of others and remembers for
// which addresses of the plan that could not be done. Attached to these, we would
// take queries that never arrive. The lock is held.
func (k *Reconciler) makeWay(r iptables.Rules) {
	if k.cfg.Kernel.MakeWay == nil || r.Plan.DryRun {
		return
	}
	blocked, cleared := k.cfg.Kernel.MakeWay(r)
	k.facts.Lock()
	var lost []netip.Addr
	for a := range blocked {
		if k.blocked[a] == nil && k.Covers(a) {
			lost = append(lost, a)
		}
	}
	k.blocked = blocked
	if cleared {
		k.cleared = time.Now()
	}
	k.facts.Unlock()
	if len(lost) == 0 {
		return
	}
	if err := k.standBack(r.Plan, lost); err != nil {
		k.cfg.Log.Warningf("give the queries to %s back to the cluster: %v", addressList(lost), err)
	}
}

// lookAtWay makes way for a plan that is prepared.
func (k *Reconciler) lookAtWay(ctx context.Context, n *watch) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if ctx.Err() == nil && k.next == n {
		k.makeWay(k.installed[n.backend])
	}
}

// lookAtWayOf makes way for a plan that is in force. It waits for a look that is
// under way.
func (k *Reconciler) lookAtWayOf(ctx context.Context, w *watch) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if ctx.Err() == nil && k.current == w {
		k.makeWay(k.installed[w.backend])
	}
}

// blockedOf returns why untracked DNS does not pass, by address. Without a lease
// all addresses are live or none is.
func (k *Reconciler) blockedOf(p iptables.Plan) map[netip.Addr]error {
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
func (k *Reconciler) obstructed(p iptables.Plan, failed map[netip.Addr]error) error {
	blocked := k.blockedOf(p)
	if len(blocked) == len(p.Addresses()) {
		return firstError(blocked)
	}
	for a := range blocked {
		delete(failed, a)
	}
	return firstError(failed)
}

// standBack gives the queries to addresses that are blocked back to the cluster
// since nothing of them would arrive here. The lock is held.
func (k *Reconciler) standBack(p iptables.Plan, addrs []netip.Addr) error {
	listen := slices.DeleteFunc(slices.Clone(p.Listen), func(e iptables.Endpoint) bool { return !slices.Contains(addrs, e.Addr) })
	if p.Lease == 0 {
		k.uncover(p.Addresses())
		return errors.Join(k.detach(k.Backend()), k.reset(listen, nil))
	}
	// The answer to a probe that has left would take the lease again; the next
	// one is not sent. See renewOne.
	k.probing <- struct{}{}
	<-k.probing
	k.uncover(addrs)
	return errors.Join(k.Backend().EndLease(addrs), k.reset(listen, nil))
}

// uncover notes that the queries to addresses are given back.
func (k *Reconciler) uncover(addrs []netip.Addr) {
	k.facts.Lock()
	defer k.facts.Unlock()
	for _, a := range addrs {
		delete(k.tenures, a)
	}
	if covered := k.covered.Load(); covered != nil {
		k.cover(slices.DeleteFunc(slices.Clone(*covered), func(a netip.Addr) bool { return slices.Contains(addrs, a) }))
	}
}

// reset ends connections from which nothing arrives any more.
func (k *Reconciler) reset(listen []iptables.Endpoint, devices []string) error {
	if k.cfg.Reset == nil {
		return nil
	}
	return k.cfg.Reset(listen, devices)
}

// whereTo says where DNS goes while that is in the way.
func whereTo(why error) string {
	if errors.Is(why, iptables.ErrUntracked) {
		return "DNS comes here all the same"
	}
	return "DNS goes to the cluster"
}

// explained adds to an error what of somebody else it comes from.
func (k *Reconciler) explained(ctx context.Context, a netip.Addr, err error) error {
	if k.cfg.Kernel.Explain == nil || err == nil || ctx.Err() != nil {
		return err
	}
	if why := k.cfg.Kernel.Explain(a); why != "" {
		return fmt.Errorf("%w; %s", err, why)
	}
	return err
}
