package reconcile

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
	"github.com/trackless-dns/trackless/iptables/reconcile/shared"
)

// What the lease machine says of itself, for those who have a Reconciler.
type (
	// State is where the queries to the listen addresses go.
	State = lease.State
	// Standing is how a Reconciler sees itself.
	Standing = lease.Standing
	// Wait is a time for which queries are left to the cluster's DNS after lapses.
	Wait = lease.Wait
	// Load is what the kernel has made of this process so far.
	Load = lease.Load
)

// The states.
const (
	Detached = lease.Detached
	Attached = lease.Attached
	Draining = lease.Draining
)

// Causes lists why queries went to the cluster's DNS although we meant to take them.
func Causes() []lease.Cause { return lease.Causes() }

// A Reconciler owns the rules and addresses of one process. Its methods are safe
// for concurrent use; a method that changes the kernel waits for the one
// before it.
//
// A change of plan has two halves, since the addresses must be there before
// the listeners and the rules only after them: Prepare, then Commit, or
// Rollback if the listeners could not be opened.
//
// When queries are untracked is decided by a [lease.Machine]. The Reconciler
// tells it what happened, and does what it says.
type Reconciler struct {
	cfg     Config
	leases  shared.Machine
	rules   installer
	repairs repairer
	load    loadMeter
	probes  prober
	pulse   func(took time.Duration) (late time.Duration) // see await

	plans     atomic.Pointer[plans]  // for readers
	crowded   atomic.Pointer[func()] // measures the load for the attached plan
	undrained atomic.Bool            // queries were not answered in all of the drain

	// mu is held while the kernel changes, which may take seconds: a foreign
	// transaction can hold the kernel's own lock that long. What renews the
	// lease must not wait for it.
	mu      sync.Mutex
	current *serving // committed: attached, or about to be again
	next    *serving // prepared, perhaps waiting for its listeners
	leaving bool     // Detach was called, for good
	closed  bool
}

// serving is a plan, and the goroutine that keeps it in force.
type serving struct {
	r       *Reconciler
	plan    iptables.Plan
	backend iptables.Backend
	checker Checker
	late    bool // its rules could not be installed yet
	checks  []iptables.Check
	leases  []iptables.Lease
	hold    *lease.Hold        // once it is in force
	round   *checkRound        // of checks, under way; its loop's own
	changed atomic.Bool        // a change was announced since the last check of the effect
	cancel  context.CancelFunc // nil before the commit
	done    chan struct{}
}

// plans are those committed and prepared; either may be nil.
type plans struct{ current, next *serving }

// all returns those that are there.
func (p *plans) all() (all []*serving) {
	for _, s := range []*serving{p.current, p.next} {
		if s != nil {
			all = append(all, s)
		}
	}
	return all
}

// New returns a Reconciler that holds nothing yet. It panics if the configuration
// is not complete.
func New(cfg Config) *Reconciler {
	if name := cfg.missing(); name != "" {
		panic("reconcile: " + name + " is missing")
	}
	if cfg.Drain == 0 {
		cfg.Drain = 5 * time.Second
	}
	if cfg.Sync == 0 {
		cfg.Sync = 10 * time.Second
	}
	r := &Reconciler{cfg: cfg}
	r.leases.Start(time.Now())
	r.rules = newInstaller(&r.cfg)
	r.repairs = newRepairer(&r.cfg)
	r.load.cfg = &r.cfg
	r.pulse = lease.Late
	r.plans.Store(&plans{})
	return r
}

// publish shows readers which plans there are. The lock is held.
func (r *Reconciler) publish() { r.plans.Store(&plans{r.current, r.next}) }

// mayTake reports whether queries may be taken at all.
func (r *Reconciler) mayTake() bool {
	return shared.Ask(&r.leases, func(m *lease.Machine) bool { return m.MayTake(time.Now()) })
}

// blocked returns what blocks untracked DNS to the addresses of a plan.
func (r *Reconciler) blocked(p iptables.Plan) map[netip.Addr]error {
	return shared.Ask(&r.leases, func(m *lease.Machine) map[netip.Addr]error { return m.Blocked(p) })
}

// Backend returns the backend in force.
func (r *Reconciler) Backend() iptables.Backend {
	for _, s := range r.plans.Load().all() {
		return s.backend
	}
	return r.cfg.Backend
}

// listen returns the endpoints of the plans in force.
func (r *Reconciler) listen() (all []iptables.Endpoint) {
	for _, s := range r.plans.Load().all() {
		all = append(all, s.plan.Listen...)
	}
	return all
}

// Counters returns the packet counters of all backends so far.
func (r *Reconciler) Counters() (iptables.Counters, error) { return r.rules.counters(r.Backend()) }

// Covers reports whether DNS between a client and this listen address is
// untracked at the moment. It takes no lock.
func (r *Reconciler) Covers(a netip.Addr) bool { return r.leases.View().Covers(a) }

// Untracks reports whether the rules for this listen address are in force and the
// last check of their effect found nothing wrong. It takes no lock.
func (r *Reconciler) Untracks(a netip.Addr) bool { return r.leases.View().Untracks(a) }

// OnLeases has told called with the leases on which fast paths may rely and until when
// they are held, now and whenever something has happened to them. It is called under a
// lock: it must not wait, nor do I/O.
func (r *Reconciler) OnLeases(told func(map[netip.Addr]time.Time)) {
	r.leases.OnLeases(told)
}

// Released reports whether the query rules were taken away on purpose, so that
// a TCP connection is best closed when the query on it has been answered: its
// client's next one finds the cluster's DNS. It takes no lock.
func (r *Reconciler) Released() bool { return r.leases.View().Released() }

// State returns where the queries go.
func (r *Reconciler) State() State { return shared.Ask(&r.leases, (*lease.Machine).State) }

// Status returns every listen address and whether DNS to it is untracked: the
// rules are in force, and the last check of their effect found nothing wrong.
func (r *Reconciler) Status() map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, s := range r.plans.Load().all() {
		for _, a := range s.plan.Addresses() {
			out[a] = r.Untracks(a)
		}
	}
	return out
}

// Standing returns how things are, without waiting for a change under way.
func (r *Reconciler) Standing() Standing {
	s := shared.Ask(&r.leases, func(m *lease.Machine) Standing { return m.Standing(time.Now()) })
	current := r.plans.Load().current
	s.DryRun = current != nil && current.plan.DryRun
	return s
}

// Stats are counters of a Reconciler since it was made.
type Stats struct {
	// Lapses is how often a lease ran out although we meant to hold it.
	Lapses uint64
	// Overloads is how often the queries were given to the cluster's DNS before a
	// lease ran out, since too many were lost to a CPU limit.
	Overloads uint64
	// Repairs is how often something of ours was put back, by what it was.
	Repairs map[string]uint64
	// Syncs is how often all was held against what it should be, at Config.Sync
	// and at changes, and SyncTime what that took in all.
	Syncs    uint64
	SyncTime time.Duration
}

// Stats returns the counters.
func (r *Reconciler) Stats() Stats {
	s := r.repairs.stats()
	s.Lapses = shared.Ask(&r.leases, (*lease.Machine).Lapses)
	s.Overloads = shared.Ask(&r.leases, (*lease.Machine).Overloads)
	return s
}
