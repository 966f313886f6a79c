package admission

import (
	"net/netip"
	"slices"

	"github.com/trackless-dns/trackless/agent/sockets"
)

// thinning decides which part of the queries of sources that flood this process takes from
// the kernel. Each query costs processor time and room in a buffer that all clients share,
// even if it is dropped or answered SERVFAIL at once. It is of the goroutine that watches.
type thinning struct {
	pass     float64      // the part that passes
	from     []netip.Addr // none: all queries of everybody pass
	idle     []int        // windows since each of them flooded last
	tooMuch  float64      // the part that held up others last
	windows  int          // since pass was changed
	overflow uint64       // packets lost in the buffers so far
	unknown  bool         // how many of them since the last window
}

const (
	// A source floods if so many of its queries were lost or too many in a window, 500 a second,
	// and it sent so many, 2,000 a second. One that asks less costs too little to hold up others:
	// where all clients ask for names that are not cached, as after a cold start, each loses some.
	floodsAt   = 25
	floodsWith = 100

	// firstPass is the part that passes at first.
	firstPass = 1.0 / 4

	// leastPass is the smallest part: of 20,000 queries a second 312.
	leastPass = 1.0 / 64

	// A part is tried for passWindows windows until it grows by passGrowth, or by slowGrowth
	// where it comes near to the part that was too much.
	passWindows = 4
	passGrowth  = 1.25
	slowGrowth  = 1.03
	near        = 1.5

	// A source passes whole when it has not flooded for idleWindows windows, 10 seconds, though
	// others flood. Thinned sources lose less: one that still floods soon does so again.
	idleWindows = 200
)

// begin is called before the first window: what was lost in buffers so far is not known.
func (t *thinning) begin() { t.unknown = true }

// end lets all queries pass. It reports whether some did not.
func (t *thinning) end() (changed bool) {
	changed = len(t.from) > 0
	t.from, t.idle = nil, nil
	return changed
}

// passOf returns which part of a source's queries passes.
func (t *thinning) passOf(source netip.Addr) float64 {
	if slices.Contains(t.from, source) {
		return t.pass
	}
	return 1
}

// add thins out a source, if the kernel can take one more.
func (t *thinning) add(source netip.Addr) {
	if !slices.Contains(t.from, source) && len(t.from) < sockets.MaxThinned {
		t.from, t.idle = append(t.from, source), append(t.idle, 0)
	}
}

// age removes the sources that have not flooded lately. It reports whether there were some.
func (t *thinning) age(floods []netip.Addr) (changed bool) {
	for i := len(t.from) - 1; i >= 0; i-- {
		if t.idle[i]++; slices.Contains(floods, t.from[i]) {
			t.idle[i] = 0
		}
		if t.idle[i] > idleWindows {
			t.from, t.idle = slices.Delete(t.from, i, i+1), slices.Delete(t.idle, i, i+1)
			changed = true
		}
	}
	return changed
}

// window is what happened in one.
type window struct {
	late     bool          // goroutines ran late
	overflow func() uint64 // packets lost in buffers so far
	floods   []netip.Addr  // the sources that flood
	pressed  bool          // thinned sources send as much as before, though they may lose nothing more
}

// heldUp reports whether others are held up. It does not read files while goroutines run late:
// that takes a turn of the scheduler for each system call. A few packets may have been lost
// elsewhere on the node: they are no reason to begin.
func (t *thinning) heldUp(w window) bool {
	if w.late {
		t.unknown = true
		return true
	}
	before, unknown := t.overflow, t.unknown
	t.overflow, t.unknown = w.overflow(), false
	least := uint64(1)
	if len(t.from) == 0 {
		least = floodsAt
	}
	return t.overflow >= before+least && !unknown
}

// next is called after each window. It reports whether something has changed.
func (t *thinning) next(w window) (changed bool) {
	heldUp := t.heldUp(w)
	t.windows++
	aged := t.age(w.floods)
	pressed := len(w.floods) > 0 || w.pressed && len(t.from) > 0
	switch {
	case heldUp && pressed:
		if len(t.from) == 0 {
			t.pass = 2 * firstPass
		}
		for _, a := range w.floods {
			t.add(a)
		}
		t.tooMuch = t.pass
		t.pass = max(leastPass, t.pass/2)
	case len(t.from) == 0 || t.windows < passWindows && pressed:
		return aged
	case pressed && t.pass > t.tooMuch/near && t.pass < t.tooMuch*near:
		t.pass *= slowGrowth
	default:
		t.pass *= passGrowth
	}
	if t.pass >= 1 {
		t.end()
	}
	t.windows = 0
	return true
}
