package lease

import (
	"net/netip"
	"slices"
	"time"
)

// State is where the queries to the listen addresses go.
type State uint8

// The states follow each other in this order; after Draining comes Detached.
const (
	// Detached: queries are tracked and go where they would go without us.
	Detached State = iota
	// Attached: queries to the listen endpoints come here untracked.
	Attached
	// Draining: no new query comes here; late responses stay untracked.
	Draining
)

// String gives the state's name for logs.
func (s State) String() string {
	switch s {
	case Attached:
		return "attached"
	case Draining:
		return "draining"
	}
	return "detached"
}

// Standing is how things are, for people.
type Standing struct {
	State  State
	Since  time.Time // State was entered
	ByHand bool      // detached by hand, until attached by hand
	DryRun bool      // the plan in force untracks nothing
	Reason error     // why it is not attached, or attached without effect; nil if all is well
	Wait   Wait      // after lapses
}

// Wait is a time for which queries are left to the cluster's DNS after lapses.
type Wait struct {
	Until time.Time // zero: there is none
	Cause Cause     // of the last lapse
}

// View is what the machine shows to readers that must not wait. It never changes.
type View struct {
	covered  []netip.Addr
	defeated []netip.Addr
	byHand   bool
	released bool
}

// Covers reports whether the rules for this listen address are in force.
func (v *View) Covers(a netip.Addr) bool { return v != nil && slices.Contains(v.covered, a) }

// Untracks reports whether the rules for this listen address are in force, and the
// last check of their effect found nothing wrong.
func (v *View) Untracks(a netip.Addr) bool { return v.Covers(a) && !slices.Contains(v.defeated, a) }

// Released reports whether the query rules were taken away on purpose.
func (v *View) Released() bool { return v != nil && v.released }

// ByHand reports whether an operator detached this process.
func (v *View) ByHand() bool { return v != nil && v.byHand }
