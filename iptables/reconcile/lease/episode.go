package lease

import (
	"errors"
	"net/netip"
	"slices"
	"time"
)

// ErrStarved is matched by the error of a check that was not answered and says nothing:
// the process had no time to answer it.
var ErrStarved = errors.New("this process got no processor in time")

// unclearFor is for how long the checks of an address may say nothing: two of them. If its
// lease probes are answered all the while, the process runs, and something else hangs.
const unclearFor = 7 * time.Second

// checksEnded notes what a round of checks found. A check that says nothing changes
// nothing at first. Neither does a round that is not over yet, since the process does not
// run in time (nil): such a process renews no lease either.
func (h *Hold) checksEnded(now time.Time, checks map[netip.Addr]error) {
	h.checked = now
	if checks == nil {
		return
	}
	for _, a := range h.plan.Addresses() {
		if !errors.Is(checks[a], ErrStarved) {
			delete(h.unclear, a)
			continue
		}
		if _, ok := h.unclear[a]; !ok {
			h.unclear[a] = now
		}
		if now.Sub(h.unclear[a]) > unclearFor {
			continue
		}
		if former := h.checks[a]; former != nil {
			checks[a] = former
		} else {
			delete(checks, a)
		}
	}
	h.checks = checks
}

// Episode is a time in which leases ran out, now this one and now that.
type Episode struct {
	Addrs  []netip.Addr  // those that ran out, in order
	Lapses int           // how often
	Lasted time.Duration // until all were held again

	began, last time.Time
}

// follow adds a round to the episode under way, and returns it when it is over: all
// leases are held again, and none has run out for as long as a lease lasts.
func (h *Hold) follow(now time.Time, r *Round) (over *Episode) {
	if len(r.Lapsed) > 0 {
		if h.episode == nil {
			h.episode = &Episode{began: now}
		}
		for _, l := range r.Lapsed {
			if !slices.Contains(h.episode.Addrs, l.Addr) {
				h.episode.Addrs = append(h.episode.Addrs, l.Addr)
			}
		}
		h.episode.Lapses += len(r.Lapsed)
	}
	e := h.episode
	if e == nil {
		return nil
	}
	if len(r.Lapsed)+len(r.Again) > 0 {
		e.last = now
	}
	down := slices.ContainsFunc(e.Addrs, func(a netip.Addr) bool { return h.down[a] })
	if down || now.Sub(e.last) < h.plan.Lease {
		return nil
	}
	h.episode = nil
	e.Lasted = e.last.Sub(e.began)
	slices.SortFunc(e.Addrs, netip.Addr.Compare)
	return e
}
