package kernelcounters

import (
	"testing"

	"github.com/trackless-dns/trackless/conntrack"
)

// The kernel's counters have 32 bits on each CPU; CPUs come and go.
func TestKernelCountersNeverFall(t *testing.T) {
	var k Sums
	for i, step := range []struct {
		stats []conntrack.CPUStats
		want  uint64
	}{
		{[]conntrack.CPUStats{{CPU: 0, Drop: 5}, {CPU: 1, Drop: 1<<32 - 2}}, 5 + 1<<32 - 2},
		{[]conntrack.CPUStats{{CPU: 0, Drop: 6}, {CPU: 1, Drop: 3}}, 6 + 1<<32 + 3},
		{[]conntrack.CPUStats{{CPU: 0, Drop: 6}}, 6 + 1<<32 + 3},
		{[]conntrack.CPUStats{{CPU: 0, Drop: 6}, {CPU: 1, Drop: 4}, {CPU: 2, Drop: 1}}, 6 + 1<<32 + 5},
		// The module was loaded again: the counters began at 0.
		{[]conntrack.CPUStats{{CPU: 0, Drop: 2}, {CPU: 1, Drop: 4}, {CPU: 2, Drop: 0}}, 8 + 1<<32 + 5},
	} {
		if got := k.Update(step.stats)["drop"]; got != step.want {
			t.Errorf("step %d: drop %d, want %d", i, got, step.want)
		}
	}
}
