package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/procfs"

	benched "github.com/trackless-dns/trackless/test/bench/server"
)

// method says where the processor times come from.
const method = "CPU is that of server, clients and ksoftirqd by the scheduler's clocks: the veth's softirqs run inside of these. " +
	"/proc/stat counts in ticks and only tells the share of others."

// clock is what the CPUs have done so far.
type clock struct {
	at              time.Time
	server, softirq time.Duration
	busy, stolen    time.Duration // of all measured CPUs, counted in ticks
}

// measuredCPUs are those of server and client.
var measuredCPUs = []int64{serverCPU, clientCPU}

// readClock reads the clock, with the processor time of the server and of the kernel's
// threads for softirqs.
func readClock(server int, softirqs []int) (c clock, err error) {
	c.at = time.Now()
	if c.server, err = benched.ProcessorTime(server); err != nil {
		return c, err
	}
	for _, pid := range softirqs {
		taken, err := benched.ProcessorTime(pid)
		if err != nil {
			return c, err
		}
		c.softirq += taken
	}
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return c, err
	}
	stat, err := fs.Stat()
	if err != nil {
		return c, err
	}
	for _, n := range measuredCPUs {
		cpu, there := stat.CPU[n]
		if !there {
			return c, fmt.Errorf("there is no CPU %d: two CPUs are needed", n)
		}
		c.busy += seconds(cpu.User + cpu.Nice + cpu.System + cpu.IRQ + cpu.SoftIRQ)
		c.stolen += seconds(cpu.Steal)
	}
	return c, nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// softirqThreads are the kernel's threads that process softirqs of the measured CPUs
// where these are too many for the tasks that raise them.
func softirqThreads() (pids []int, err error) {
	processes, err := procfs.AllProcs()
	if err != nil {
		return nil, err
	}
	for _, p := range processes {
		name, err := p.Comm()
		if err != nil {
			continue // it has ended since
		}
		rest, ok := strings.CutPrefix(name, "ksoftirqd/")
		if ok && slices.ContainsFunc(measuredCPUs, func(n int64) bool { return fmt.Sprint(n) == rest }) {
			pids = append(pids, p.PID)
		}
	}
	return pids, nil
}
