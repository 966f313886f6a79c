package conntrack

import "testing"

func TestRise(t *testing.T) {
	for _, tc := range []struct {
		name          string
		before, after []CPUStats
		want          CPUStats
	}{
		{"nothing", nil, nil, CPUStats{CPU: -1}},
		{"two CPUs", []CPUStats{{CPU: 0, Drop: 5}, {CPU: 1, Drop: 7, InsertFailed: 1}},
			[]CPUStats{{CPU: 0, Drop: 6}, {CPU: 1, Drop: 9, InsertFailed: 5}}, CPUStats{CPU: -1, Drop: 3, InsertFailed: 4}},
		{"a counter of 32 bits wraps", []CPUStats{{CPU: 3, Invalid: 1<<32 - 2}}, []CPUStats{{CPU: 3, Invalid: 5}}, CPUStats{CPU: -1, Invalid: 7}},
		{"the counters began again at 0", []CPUStats{{CPU: 3, Drop: 9}}, []CPUStats{{CPU: 3, Drop: 2}}, CPUStats{CPU: -1, Drop: 2}},
		{"a CPU comes", []CPUStats{{CPU: 0, Drop: 1}}, []CPUStats{{CPU: 0, Drop: 2}, {CPU: 1, Drop: 1000}}, CPUStats{CPU: -1, Drop: 1}},
		{"a CPU goes", []CPUStats{{CPU: 0, Drop: 1}, {CPU: 1, Drop: 9}}, []CPUStats{{CPU: 0, Drop: 2}}, CPUStats{CPU: -1, Drop: 1}},
	} {
		if got := Rise(tc.before, tc.after); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}
