package admission

import (
	"net/netip"
	"testing"
)

// A source that floods is thinned out while others are held up, and step by step less when
// they no longer are.
func TestThinning(t *testing.T) {
	greedy, other := flooder()
	var th thinning
	var lost uint64
	for step, tc := range []struct {
		windows int
		late    bool
		lost    uint64 // in each window
		floods  []netip.Addr
		from    int
		pass    float64
	}{
		{3, true, 1, nil, 0, 0},                             // nobody floods
		{3, false, 0, []netip.Addr{greedy}, 0, 0},           // nobody is held up
		{1, true, 0, []netip.Addr{greedy}, 1, 0.5},          // late
		{1, false, 7, []netip.Addr{greedy}, 1, 0.25},        // packets were lost
		{3, false, 0, []netip.Addr{greedy}, 1, 0.25},        // not for long
		{1, false, 0, []netip.Addr{greedy}, 1, 0.25 * 1.25}, // for some time
		{20, true, 0, []netip.Addr{greedy, other}, 2, leastPass},
		{18, false, 0, nil, 2, leastPass * 55.511151231257827}, // the flood is over
		{1, false, 0, nil, 0, 0},
	} {
		for range tc.windows {
			lost += tc.lost
			th.next(tc.late, lost, tc.floods)
		}
		if len(th.from) != tc.from || tc.from > 0 && th.pass != tc.pass {
			t.Errorf("step %d: %v, %g passes, want %d sources and %g", step, th.from, th.pass, tc.from, tc.pass)
		}
	}
}
