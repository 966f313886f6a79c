package server

import (
	"fmt"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// ProcessorTime is how much all threads of a process have taken, also those that have
// ended, and the children that it waited for. It is read from the clock of the process,
// which is as exact as the scheduler is. For children there is only the sum in
// /proc/PID/stat.
func ProcessorTime(pid int) (time.Duration, error) {
	const perProcess = 2 // CPUCLOCK_SCHED of linux/posix-timers.h, without the bit of one thread
	var now unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|perProcess, &now); err != nil {
		return 0, fmt.Errorf("read the processor clock of process %d: %w", pid, err)
	}
	process, err := procfs.NewProc(pid)
	if err != nil {
		return 0, err
	}
	stat, err := process.Stat()
	if err != nil {
		return 0, err
	}
	const hertz = 100 // USER_HZ, the unit of proc_pid_stat(5)
	children := time.Duration(stat.CUTime+stat.CSTime) * time.Second / hertz
	return time.Duration(now.Nano()) + children, nil
}
