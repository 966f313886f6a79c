package admission

import (
	"net/netip"
	"testing"
)

// A source that floods is thinned out while others are held up, and step by step less when
// they no longer are.
func TestThinning(t *testing.T) {
	greedy, other := flooder()
	both := []netip.Addr{greedy, other}
	var th thinning
	var lost uint64
	for step, tc := range []struct {
		windows     int
		late        bool
		lost        uint64 // in each window
		floods      []netip.Addr
		from        int
		least, most float64 // of the part that passes
	}{
		{3, true, 1, nil, 0, 0, 0},                 // nobody floods
		{3, false, 0, both[:1], 0, 0, 0},           // nobody is held up
		{1, true, 0, both[:1], 1, 0.5, 0.5},        // goroutines run late
		{1, false, 7, both[:1], 1, 0.25, 0.25},     // packets are lost
		{3, false, 0, both[:1], 1, 0.25, 0.25},     // it stays for some time
		{1, false, 0, both[:1], 1, 0.3125, 0.3125}, // and grows
		{8, false, 0, both[:1], 1, 0.4, 0.41},      // slowly where it was too much
		{20, true, 0, both, 2, leastPass, leastPass},
		{100, false, 0, both, 2, 2 * leastPass, 20 * leastPass},
		{15, false, 0, nil, 0, 0, 0}, // the flood is over
	} {
		for range tc.windows {
			lost += tc.lost
			th.next(tc.late, lost, tc.floods)
		}
		if len(th.from) != tc.from || tc.from > 0 && (th.pass < tc.least || th.pass > tc.most) {
			t.Errorf("step %d: %v, %g passes, want %d sources and %g to %g", step, th.from, th.pass, tc.from, tc.least, tc.most)
		}
	}
}
