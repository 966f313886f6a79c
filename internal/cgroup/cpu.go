package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// CPU is a CPU limit and what it has done so far.
type CPU struct {
	Limit     float64       // in processors
	Throttled time.Duration // the periods in which it was used up
}

// CPULimit is the smallest CPU limit of the control groups that the process is in,
// the zero value if there is none. root is where proc and sys are. It reads version
// 2 (Documentation/admin-guide/cgroup-v2.rst, cpu.max and cpu.stat) and version 1
// (Documentation/scheduler/sched-bwc.rst, cpu.cfs_quota_us).
//
// The time for which threads got no processor is in these files as well, but for
// all processors together: the number of the periods says which part of the time it
// was.
func CPULimit(root string) (cpu CPU) {
	for _, g := range groups(root, "cpu") {
		quota, period := g.bandwidth()
		if quota <= 0 || period <= 0 {
			continue
		}
		if limit := float64(quota) / float64(period); cpu.Limit == 0 || limit < cpu.Limit {
			throttled := time.Duration(g.stat("nr_throttled")) * time.Duration(period) * time.Microsecond
			cpu = CPU{limit, throttled}
		}
	}
	return cpu
}

// bandwidth is a limit in microseconds per period, 0 for none.
func (g group) bandwidth() (quota, period int64) {
	if !g.v2 {
		return g.number("cpu.cfs_quota_us"), g.number("cpu.cfs_period_us")
	}
	text, err := os.ReadFile(filepath.Join(g.path, "cpu.max"))
	if err != nil {
		return 0, 0
	}
	words := strings.Fields(string(text))
	if len(words) != 2 {
		return 0, 0
	}
	return number(words[0]), number(words[1]) // the former may be "max"
}

// number reads a file that holds one; 0 if it holds none.
func (g group) number(file string) int64 {
	text, err := os.ReadFile(filepath.Join(g.path, file))
	if err != nil {
		return 0
	}
	return number(strings.TrimSpace(string(text)))
}

func number(text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// stat reads a line of cpu.stat.
func (g group) stat(key string) int64 {
	text, err := os.ReadFile(filepath.Join(g.path, "cpu.stat"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, key+" "); ok {
			return number(strings.TrimSpace(value))
		}
	}
	return 0
}

// Starved is for how long the threads of the process were ready to run and others
// had the processors, together (Documentation/scheduler/sched-stats.rst, the second
// number of schedstat; since a throttled thread is ready to run it counts that as
// well). root is where proc is. It is 0 where the kernel does not say.
func Starved(root string) (sum time.Duration) {
	tasks, err := filepath.Glob(filepath.Join(root, "proc/self/task/*/schedstat"))
	if err != nil {
		return 0
	}
	for _, path := range tasks {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		if words := strings.Fields(string(text)); len(words) > 1 {
			sum += time.Duration(number(words[1]))
		}
	}
	return sum
}
