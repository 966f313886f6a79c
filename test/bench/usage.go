package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
	benched "github.com/trackless-dns/trackless/test/bench/server"
)

// usage is what a process has taken so far.
type usage struct {
	cpu     time.Duration
	wakeups map[int]uint64 // by task
}

// readUsage reads the usage of a process. The processor time is that of all its
// threads, also of those that have ended, and of the children that it waited for.
func readUsage(pid int) (usage, error) {
	cpu, err := benched.ProcessorTime(pid)
	if err != nil {
		return usage{}, err
	}
	tasks, err := procfs.AllThreads(pid)
	if err != nil {
		return usage{}, err
	}
	u := usage{cpu: cpu, wakeups: map[int]uint64{}}
	for _, task := range tasks {
		status, err := task.NewStatus()
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended since
		}
		if err != nil {
			return usage{}, err
		}
		u.wakeups[task.PID] = status.VoluntaryCtxtSwitches
	}
	return u, nil
}

// since is how often the process's tasks slept and woke up after an earlier reading.
func (u usage) since(earlier usage) (wakeups uint64) {
	for task, n := range u.wakeups {
		wakeups += n - earlier.wakeups[task]
	}
	return wakeups
}

// measureOnce lets the time pass and returns what each server took of it.
func measureOnce(ctx context.Context, servers []*server, syscalls *tracepoint, last time.Duration) (rows []row, err error) {
	counters := make([]*counter, len(servers))
	defer func() {
		for _, c := range counters {
			err = errors.Join(err, c.close())
		}
	}()
	earlier, began := make([]usage, len(servers)), make([]time.Time, len(servers))
	for i, s := range servers {
		if counters[i], err = syscalls.count(s.Running.PID()); err != nil {
			return nil, err
		}
		began[i] = time.Now()
		if earlier[i], err = readUsage(s.Running.PID()); err != nil {
			return nil, err
		}
	}
	if err := wait(ctx, last); err != nil {
		return nil, err
	}
	for i, s := range servers {
		seconds := time.Since(began[i]).Seconds()
		now, err := readUsage(s.Running.PID())
		if err != nil {
			return nil, err
		}
		r := row{
			Server: s.row(), Kind: s.kind, Backend: s.backend, Addresses: s.addresses, Other: s.other,
			CPU:     1000 * (now.cpu - earlier[i].cpu).Seconds() / seconds,
			Wakeups: float64(now.since(earlier[i])) / seconds,
		}
		calls, counted, err := counters[i].read()
		if err != nil {
			return nil, err
		}
		if counted {
			perSecond := float64(calls) / seconds
			r.Syscalls = &perSecond
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// measureAsked measures the servers that are asked, while they are. The names become
// cached before.
func measureAsked(ctx context.Context, servers []*server, syscalls *tracepoint, o options) ([]row, error) {
	var asked []*server
	var streams []clients.Stream
	for _, s := range servers {
		if s.asked {
			asked = append(asked, s)
			streams = append(streams, clients.Stream{
				Kind: clients.FreshPort, From: s.Node.Pods[0].Namespace, Target: lab.ClusterDNS4, Rate: o.rate,
			})
		}
	}
	fmt.Fprintf(os.Stderr, "bench: %d servers asked %g times a second for %s\n", len(asked), o.rate, o.last)
	load := clients.StartStreams(streams, 0)
	err := wait(ctx, o.settle)
	var rows []row
	if err == nil {
		rows, err = measureOnce(ctx, asked, syscalls, o.last)
	}
	sent, stopErr := load.Stop()
	if err := errors.Join(err, stopErr); err != nil {
		return nil, err
	}
	for i := range rows {
		for _, query := range sent[i] {
			if rows[i].Queries++; query.Loss != "" {
				rows[i].Lost++
			} else if query.By == lab.KubeDNS {
				rows[i].Elsewhere++
			}
		}
	}
	return rows, nil
}

// loadAverage is that of the last minute, "" if it is unknown.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	one, _, _ := strings.Cut(string(text), " ")
	return one
}
