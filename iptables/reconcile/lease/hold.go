package lease

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/trackless-dns/trackless/iptables"
)

// Hold is a plan in force: for each address when its lease was renewed, and whether
// it ran out. Its methods are events of the machine.
type Hold struct {
	m       *Machine
	plan    iptables.Plan
	addrs   []netip.Addr
	renewed map[netip.Addr]time.Time // when the probe was answered: the lease lasts from then on
	failed  map[netip.Addr]error     // why the last round did not renew it
	down    map[netip.Addr]bool      // out of lease, and said so; or not to be held
	lapsed  time.Time                // when one ran out last that was not the consequence of another

	// What the checks of the last round found, by address, and when they ended.
	checks  map[netip.Addr]error
	checked time.Time
	unclear map[netip.Addr]time.Time // since when its checks say nothing
	episode *Episode                 // of lapses, under way

	suspect map[netip.Addr]time.Time // since when the effect is missing
}

// Due returns the addresses whose leases may be renewed: the last round of checks
// was answered, and not too long ago.
func (h *Hold) Due(now time.Time) (due []netip.Addr) {
	if h.plan.DryRun || h.m.withheld() {
		return nil
	}
	waiting, blocked := h.m.waiting(now), h.m.Blocked(h.plan)
	if waiting == everybody || h.plan.Lease > 0 && now.Sub(h.checked) > h.plan.Lease {
		return nil
	}
	for _, a := range h.addrs {
		if blocked[a] == nil && h.checks[a] == nil && (!h.down[a] || waiting != lapsedOnes) {
			due = append(due, a)
		}
	}
	return due
}

// Renewal is what became of a lease probe.
type Renewal struct {
	Addr     netip.Addr
	Answered time.Time
	Err      error
}

// Round is what became of the leases in one round of checks and lease probes.
type Round struct {
	Again   []netip.Addr // those held that were not before
	Lapsed  []Lapse      // those that ran out
	Blocked []Blocked    // those found blocked, which was not known
	First   bool         // the lapse is not the consequence of another
	Over    *Episode     // of lapses, that is over; those in Again may belong to it

	h    *Hold
	live []netip.Addr // those held
	idle bool         // nothing is to be held
}

// Lapse is a lease that ran out.
type Lapse struct {
	Addr netip.Addr
	Late time.Duration // since it was renewed
	Why  error
}

// Blocked is an address to which something of others blocks untracked DNS.
type Blocked struct {
	Addr netip.Addr
	Why  error
}

// Ended ends a round. checks are nil if the checks are not over. If leases lapsed, Explain
// and Yield are to be called, and Settle in any case.
func (h *Hold) Ended(now time.Time, checks map[netip.Addr]error, renewals []Renewal) *Round {
	r := &Round{h: h}
	h.checksEnded(now, checks)
	switch {
	case h.plan.DryRun || h.m.withheld():
		h.leave(h.addrs)
		r.idle = true
		return r
	case h.m.waiting(now) == everybody:
		h.leave(h.addrs)
		return r
	}
	blocked := h.m.Blocked(h.plan)
	for _, a := range h.addrs {
		if why := blocked[a]; why != nil {
			r.block(a, why)
			continue
		}
		i := slices.IndexFunc(renewals, func(r Renewal) bool { return r.Addr == a })
		if i >= 0 && renewals[i].Err == nil {
			r.renewed(a, renewals[i].Answered)
			continue
		}
		why := h.checks[a]
		if i >= 0 {
			why = fmt.Errorf("the lease probe was not answered: %w", renewals[i].Err)
		}
		r.notRenewed(now, a, why)
	}
	if len(r.Lapsed) > 0 {
		h.m.lapses += uint64(len(r.Lapsed))
		if r.First = now.Sub(h.lapsed) > h.plan.Lease; r.First {
			h.lapsed = now
		}
	}
	r.Over = h.follow(now, r)
	return r
}

// InEpisode reports whether an episode of lapses is under way.
func (r *Round) InEpisode() bool { return r.h.episode != nil }

func (r *Round) block(a netip.Addr, why error) {
	h := r.h
	if !h.down[a] || h.failed[a] == nil || h.failed[a].Error() != why.Error() {
		r.Blocked = append(r.Blocked, Blocked{a, why})
	}
	h.down[a], h.failed[a] = true, why
}

// renewed is for a probe that was answered. One that was answered too late has taken
// the lease anew: that is a lapse, whatever the reason.
func (r *Round) renewed(a netip.Addr, answered time.Time) {
	h := r.h
	r.lapse(a, answered, because(h.failed[a]))
	if h.down[a] {
		r.Again = append(r.Again, a)
	}
	h.renewed[a], h.down[a], h.failed[a] = answered, false, h.checks[a]
	r.live = append(r.live, a)
}

func (r *Round) notRenewed(now time.Time, a netip.Addr, why error) {
	h := r.h
	r.lapse(a, now, because(why, h.failed[a]))
	h.failed[a] = why
	if !h.down[a] {
		r.live = append(r.live, a)
	}
}

// lapse notes that the lease of an address ran out, if it did.
func (r *Round) lapse(a netip.Addr, at time.Time, why error) {
	h := r.h
	late := at.Sub(h.renewed[a])
	if h.plan.Lease == 0 || late <= h.plan.Lease || h.down[a] {
		return
	}
	h.down[a] = true
	r.Lapsed = append(r.Lapsed, Lapse{a, late, why})
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

// LapsedAddrs are the addresses whose leases ran out.
func (r *Round) LapsedAddrs() (addrs []netip.Addr) {
	for _, l := range r.Lapsed {
		addrs = append(addrs, l.Addr)
	}
	return addrs
}

// Worst returns the lease that ran out first.
func (r *Round) Worst() Lapse {
	worst := r.Lapsed[0]
	for _, l := range r.Lapsed {
		if l.Late > worst.Late {
			worst = l
		}
	}
	return worst
}

// Explain notes why leases ran out, and returns for how long queries are left to the
// cluster's DNS. It is called for the first lapses only: those of a moment later come
// from the same.
func (r *Round) Explain(now time.Time, cause Cause, why error) time.Duration {
	return r.h.m.learn(now, cause, why)
}

// Yield returns the addresses whose leases are to be ended: none, those that ran out,
// or all.
func (r *Round) Yield(now time.Time) (addrs []netip.Addr) {
	switch r.h.m.waiting(now) {
	case nobody:
		return nil
	case everybody:
		addrs = r.h.addrs
	default:
		addrs = r.LapsedAddrs()
	}
	r.h.leave(addrs)
	down := func(a netip.Addr) bool { return r.h.down[a] }
	r.live, r.Again = slices.DeleteFunc(r.live, down), slices.DeleteFunc(r.Again, down)
	return addrs
}

// Settle shows what the round found. It changes nothing once another plan is in
// force, or the queries were withheld meanwhile.
func (r *Round) Settle(now time.Time) {
	m := r.h.m
	if r.idle || m.hold != r.h || m.withheld() {
		return
	}
	m.covered = r.live
	m.reason = firstError(r.h.failed)
	if len(r.live) > 0 {
		m.enter(now, Attached)
	} else {
		m.enter(now, Detached)
	}
}

// leave is for addresses that are not to be held for the time being: that is no lapse.
func (h *Hold) leave(addrs []netip.Addr) {
	for _, a := range addrs {
		h.down[a], h.failed[a] = true, nil
	}
}
