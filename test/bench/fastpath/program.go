package main

import (
	"fmt"
	"net"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab"
)

// runs are those of the programs at a device.
type runs struct {
	took  time.Duration
	count uint64
}

// since is the time of one run since an earlier reading, in nanoseconds; 0 if there was
// none.
func (r runs) since(earlier runs) float64 {
	return float64(r.took-earlier.took) / float64(max(r.count-earlier.count, 1))
}

// programRuns reads the runs of the programs at tcx ingress of a pod's device. The
// kernel counts them while statistics are enabled.
func programRuns(node *lab.Namespace, device string) (r runs, err error) {
	err = node.Do(func() error {
		index, err := net.InterfaceByName(device)
		if err != nil {
			return fmt.Errorf("find %s: %w", device, err)
		}
		attached, err := link.QueryPrograms(link.QueryOptions{Target: index.Index, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return fmt.Errorf("find the programs at %s: %w", device, err)
		}
		if len(attached.Programs) == 0 {
			return fmt.Errorf("no program is at tcx ingress of %s", device)
		}
		for _, p := range attached.Programs {
			took, count, err := statistics(p.ID)
			if err != nil {
				return err
			}
			r.took, r.count = r.took+took, r.count+count
		}
		return nil
	})
	return r, err
}

func statistics(id ebpf.ProgramID) (took time.Duration, count uint64, err error) {
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return 0, 0, fmt.Errorf("open program %d: %w", id, err)
	}
	defer func() { _ = program.Close() }()
	stats, err := program.Stats()
	if err != nil {
		return 0, 0, fmt.Errorf("read the statistics of program %d: %w", id, err)
	}
	return stats.Runtime, stats.RunCount, nil
}

// countRuns has the kernel count until the function that it returns is called.
func countRuns() (stop func() error, err error) {
	counting, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return nil, fmt.Errorf("have the kernel count runs of programs: %w", err)
	}
	return counting.Close, nil
}
