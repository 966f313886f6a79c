package lease

import (
	"net/netip"
	"slices"
	"time"
)

// Effect is what a check of the rules' effect means.
type Effect uint8

// What it may mean.
const (
	// Unclear: it may be a lapse of ours, or nothing is in force.
	Unclear Effect = iota
	// Unchanged: as the check before.
	Unchanged
	// Restored: the rules have their effect again.
	Restored
	// Defeated: others defeat the rules, which was not known. EffectDefeated follows.
	Defeated
)

// MayCheckEffect reports whether a check of the effect would tell something: the
// rules are in force. Without a lease it would leave an entry, as any query does.
func (h *Hold) MayCheckEffect(now time.Time, a netip.Addr) bool {
	if !slices.Contains(h.m.covered, a) {
		delete(h.suspect, a)
		delete(h.m.effects, a)
		return false
	}
	return h.plan.Lease == 0 || now.Before(h.m.held[a].until)
}

// EffectChecked notes what a check found that began at the given time. Others are to
// blame only if it fails twice while we hold the lease and go on to renew it: not for
// a lapse of ours, nor when we hang.
func (h *Hold) EffectChecked(began, now time.Time, a netip.Addr, err error) Effect {
	before := h.m.effects[a]
	if err == nil {
		delete(h.suspect, a)
		h.m.effects[a] = nil
		if before != nil {
			return Restored
		}
		return Unchanged
	}
	first, again := h.suspect[a]
	if !again || h.plan.Lease > 0 && !h.m.heldSince(now, a, first, h.plan.Lease) {
		h.suspect[a] = began
		return Unclear
	}
	if !slices.Contains(h.m.covered, a) {
		return Unclear // left to the cluster's DNS meanwhile
	}
	if before != nil {
		return Unchanged
	}
	return Defeated
}

// EffectUnclear reports whether a check found that the effect is missing, and the next
// is to tell more.
func (h *Hold) EffectUnclear() bool {
	for _, err := range h.m.effects {
		if err != nil {
			return true
		}
	}
	return len(h.suspect) > 0
}

// EffectDefeated notes how.
func (h *Hold) EffectDefeated(a netip.Addr, why error) { h.m.effects[a] = why }
