// Package kernelcounters adds up the kernel's conntrack counters over CPUs.
package kernelcounters

import (
	"maps"
	"sync"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/internal/counter"
)

// Read reads the counters of each CPU.
func Read() (stats []conntrack.CPUStats, err error) {
	conn, err := conntrack.Dial(nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.Stats()
}

// Sums adds up the kernel's counters. The counters of a CPU have 32 bits and
// wrap; the sums never fall.
type Sums struct {
	mu   sync.Mutex
	last map[int][]conntrack.Counter // by CPU
	sum  map[string]uint64
}

// Update takes the present counters of each CPU and returns the sums over all.
func (k *Sums) Update(stats []conntrack.CPUStats) map[string]uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last == nil {
		k.last, k.sum = map[int][]conntrack.Counter{}, map[string]uint64{}
	}
	for i := range stats {
		now, last := stats[i].Counters(), k.last[stats[i].CPU]
		for j, c := range now {
			was := uint64(0)
			if last != nil {
				was = last[j].Value
			}
			k.sum[c.Name] += uint64(counter.Rise(uint32(was), uint32(c.Value)))
		}
		k.last[stats[i].CPU] = now
	}
	return maps.Clone(k.sum)
}
