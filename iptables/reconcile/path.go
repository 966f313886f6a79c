package reconcile

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
)

// pathInterval is the time between two checks of the firewall path while we are not
// attached. Such a check costs more than a round of checks of the listeners.
const pathInterval = time.Second

// checkPath lets untracked DNS pass the filter chains of others and remembers for
// which addresses of the plan that could not be done. Attached to these, we would
// take queries that never arrive. The lock is held.
func (r *Reconciler) checkPath(rules iptables.Rules) {
	if rules.Plan.DryRun {
		return
	}
	blocked, cleared := r.cfg.Kernel.Unblock(rules)
	var lost []netip.Addr
	r.leases.Tell(func(m *lease.Machine) { lost = m.PathChecked(time.Now(), blocked, cleared) })
	if len(lost) > 0 {
		r.yieldTo(rules.Plan, lost)
	}
}

// checkPathOf checks the path for a plan that is prepared or in force. It waits for a
// check that is under way.
func (s *serving) checkPathOf(ctx context.Context) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if ctx.Err() == nil && (s.r.next == s || s.r.current == s) {
		s.r.checkPath(s.r.rules.installed[s.backend])
	}
}

// yieldTo leaves the queries to addresses to the cluster's DNS. The lock is held.
func (r *Reconciler) yieldTo(p iptables.Plan, addrs []netip.Addr) {
	if err := r.endLeases(p, addrs); err != nil {
		r.cfg.Log.Warningf("give the queries to %s back to the cluster: %v", figure.Joined(addrs), err)
	}
}

func (r *Reconciler) endLeases(p iptables.Plan, addrs []netip.Addr) error {
	listen := slices.DeleteFunc(slices.Clone(p.Listen), func(e iptables.Endpoint) bool { return !slices.Contains(addrs, e.Addr) })
	b := r.Backend()
	if p.Lease == 0 {
		r.leases.Tell(func(m *lease.Machine) { m.Yield(p.Addresses()) })
		return errors.Join(r.rules.detach(b, r.listen()), r.cfg.Reset(listen, nil))
	}
	// The answer to a probe that has left would take the lease again; the next
	// one is not sent. See mayProbe.
	r.probes.wait()
	for _, s := range r.plans.Load().all() {
		s.checker.Void()
	}
	r.leases.Tell(func(m *lease.Machine) { m.Yield(addrs) })
	return errors.Join(b.EndLease(addrs), r.cfg.Reset(listen, nil))
}

// whereTo says where DNS goes while that is in the way.
func whereTo(why error) string {
	if errors.Is(why, iptables.ErrUntracked) {
		return "DNS comes here all the same"
	}
	return "DNS goes to the cluster"
}
