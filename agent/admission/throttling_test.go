package admission

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/trackless-dns/trackless/internal/cgroup"
)

func TestThrottledLately(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u Queries
		var used time.Duration
		u.limit.source = func() cgroup.CPU { return cgroup.CPU{Limit: 0.1, Throttled: used} }
		for _, step := range []struct {
			name  string
			after time.Duration
			used  time.Duration
			want  bool
		}{
			{"at first", 0, 0, false},
			{"used up", time.Second, 100 * time.Millisecond, true},
			{"not since", throttledFor / 2, 0, true},
			{"not for long", throttledFor, 0, false},
			{"again", 0, 100 * time.Millisecond, true},
		} {
			time.Sleep(step.after)
			used += step.used
			if cpu := u.limit.read(); cpu.Throttled != used {
				t.Fatalf("%s: %+v", step.name, cpu)
			}
			want := map[bool]int32{true: clientThrottled, false: clientHere}[step.want]
			if got := u.clientMay(); u.limit.lately(time.Now()) != step.want || got != want {
				t.Errorf("%s: one client may have %d queries here, want %d", step.name, got, want)
			}
		}
	})
}

// Without a limit its files are not read again and again while goroutines run late.
func TestWithoutLimitItIsSeldomRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var th throttling
		var cpu cgroup.CPU
		reads := 0
		th.source = func() cgroup.CPU {
			reads++
			return cpu
		}
		for step, tc := range []struct {
			after time.Duration
			limit float64
			want  int
		}{
			{0, 0, 1}, {noneFor - 1, 0, 1}, {1, 0.1, 2}, {1, 0.1, 3}, {1, 0, 4}, {1, 0, 4},
		} {
			time.Sleep(tc.after)
			cpu.Limit = tc.limit
			if th.look(time.Now()); reads != tc.want {
				t.Errorf("step %d: read %d times, want %d", step, reads, tc.want)
			}
		}
	})
}

// Packets that a filter drops are not lost to the CPU limit: they must not end the lease.
func TestFilteredPacketsAreNotLost(t *testing.T) {
	var d drops
	for step, tc := range []struct {
		kernel   uint64
		filtered bool
		want     uint64
	}{
		{10, false, 10}, {15, false, 15}, {1000, true, 15}, {5000, true, 15},
		{5100, false, 15}, // the filter was there for some of the time
		{5103, false, 18}, {3, false, 18}, {5, false, 20},
	} {
		if got := d.count(tc.kernel, tc.filtered); got != tc.want {
			t.Errorf("step %d: %d, want %d", step, got, tc.want)
		}
	}
}
