package cgroup

import (
	"testing"
	"time"
)

func TestCPULimit(t *testing.T) {
	const groups = "proc/self/cgroup"
	const ms = time.Millisecond
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  CPU
	}{
		{"no control groups", nil, CPU{}},
		{"version 2", map[string]string{
			groups: "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000\n", "sys/fs/cgroup/cpu.stat": "usage_usec 5\nnr_periods 100\nnr_throttled 7\nthrottled_usec 3\n",
		}, CPU{0.1, 700 * ms}},
		{"version 2 without a limit", map[string]string{
			groups: "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n", "sys/fs/cgroup/cpu.stat": "nr_throttled 0\n",
		}, CPU{}},
		{"that of the pod is the smaller one", map[string]string{
			groups: "0::/pod/container\n", "sys/fs/cgroup/pod/container/cpu.max": "50000 100000\n",
			"sys/fs/cgroup/pod/cpu.max": "5000 50000\n", "sys/fs/cgroup/pod/cpu.stat": "nr_throttled 2\n",
		}, CPU{0.1, 100 * ms}},
		{"version 1", map[string]string{
			groups:                                   "5:cpu,cpuacct:/pod\n4:memory:/pod\n",
			"sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "200000\n", "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000\n",
			"sys/fs/cgroup/cpu/pod/cpu.stat": "nr_periods 9\nnr_throttled 1\nthrottled_time 12\n",
		}, CPU{2, 100 * ms}},
		{"version 1 in a container, whose mount starts at its own group", map[string]string{
			groups: "1:cpu:/kubepods/pod1/c1\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "10000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
		}, CPU{0.1, 0}},
		{"version 1 without a limit", map[string]string{
			groups: "1:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
		}, CPU{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := CPULimit(rootWith(t, tc.files)); got != tc.want {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestStarved(t *testing.T) {
	root := rootWith(t, map[string]string{
		"proc/self/task/1/schedstat": "100 2000000000 3\n", "proc/self/task/2/schedstat": "5 500000000 1\n", "proc/self/task/3/schedstat": "",
	})
	if got := Starved(root); got != 2500*time.Millisecond {
		t.Errorf("%s", got)
	}
	if got := Starved(t.TempDir()); got != 0 {
		t.Errorf("%s without schedstat", got)
	}
}
