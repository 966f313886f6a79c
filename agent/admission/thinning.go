package admission

import (
	"net/netip"
	"slices"
)

// thinning decides which part of the queries of sources that flood this process takes from
// the kernel. Each query costs processor time and room in a buffer that all clients share,
// even if it is dropped or answered SERVFAIL at once. It is of the goroutine that watches.
type thinning struct {
	pass     float64      // the part that passes
	from     []netip.Addr // none: all queries of everybody pass
	tooMuch  float64      // the part that held up others last
	windows  int          // since pass was changed
	overflow uint64       // packets lost in the buffers so far
}

const (
	// A source floods if it lost so many queries in a window, 500 a second.
	floodsAt = 25

	// leastPass is the smallest part: of 20,000 queries a second 312.
	leastPass = 1.0 / 64

	// A part is tried for passWindows windows until it grows by passGrowth, or by slowGrowth
	// where it comes near to the part that was too much.
	passWindows = 4
	passGrowth  = 1.25
	slowGrowth  = 1.03
	near        = 1.5
)

// next is called after each window, with whether goroutines ran late in it, how many packets
// were lost in buffers so far, and which sources flood. It reports whether something has
// changed.
func (t *thinning) next(late bool, overflow uint64, floods []netip.Addr) (changed bool) {
	lost := overflow > t.overflow
	t.overflow = overflow
	t.windows++
	switch {
	case (late || lost) && len(floods) > 0:
		if len(t.from) == 0 {
			t.pass = 1
		}
		for _, a := range floods {
			if !slices.Contains(t.from, a) {
				t.from = append(t.from, a)
			}
		}
		t.tooMuch = t.pass
		t.pass = max(leastPass, t.pass/2)
	case len(t.from) == 0 || t.windows < passWindows && len(floods) > 0:
		return false
	case len(floods) > 0 && t.pass > t.tooMuch/near && t.pass < t.tooMuch*near:
		t.pass *= slowGrowth
	default:
		t.pass *= passGrowth
	}
	if t.pass >= 1 {
		t.from = nil
	}
	t.windows = 0
	return true
}
