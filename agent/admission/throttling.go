package admission

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/internal/cgroup"
	"github.com/trackless-dns/trackless/internal/logger"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
)

// throttling watches the CPU limit of this process. The zero value is ready.
type throttling struct {
	sum    atomic.Int64 // throttled time at the last read, in nanoseconds
	at     atomic.Int64 // when sum last grew, in nanoseconds of the Unix time
	none   atomic.Int64 // when there was no limit, in nanoseconds of the Unix time; 0: there is one
	source func() cgroup.CPU

	refused sync.Once // logs that buffers stay small
	drops   drops
}

// drops counts packets that found no room in buffers. The kernel counts those that a filter
// dropped as well.
type drops struct {
	mu       sync.Mutex
	last     uint64 // of the kernel
	filtered bool   // at the last count
	sum      uint64
}

// count returns how many packets were lost so far without those of the times with a filter.
func (d *drops) count(now uint64, filtered bool) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now > d.last && !filtered && !d.filtered { // fewer: a socket was closed
		d.sum += now - d.last
	}
	d.last, d.filtered = now, filtered
	return d.sum
}

const (
	// The process counts as throttled for throttledFor after its limit was used up.
	throttledFor = time.Second

	// A process without a limit gets none for so long, as far as look knows.
	noneFor = 5 * time.Second
)

// read returns the limit, and records whether it was used up since the last read.
func (t *throttling) read() cgroup.CPU {
	source := t.source
	if source == nil {
		source = readCPULimit
	}
	cpu := source()
	if t.sum.Swap(int64(cpu.Throttled)) < int64(cpu.Throttled) {
		t.at.Store(time.Now().UnixNano())
	}
	none := int64(0)
	if cpu.Limit == 0 {
		none = time.Now().UnixNano()
	}
	t.none.Store(none)
	return cpu
}

// look reads the limit, if there was one lately: it is read from files, and when goroutines run
// late each system call takes a turn of the scheduler.
func (t *throttling) look(now time.Time) {
	if now.UnixNano()-t.none.Load() >= int64(noneFor) {
		t.read()
	}
}

// lately reports whether the limit was used up in the last second.
func (t *throttling) lately(now time.Time) bool {
	return now.UnixNano()-t.at.Load() < int64(throttledFor)
}

func readCPULimit() cgroup.CPU { return cgroup.CPULimit("/") }

// Load returns how the kernel has scheduled this process, and how many queries to the
// endpoints wait or were lost. arrived counts the queries that have arrived.
func (u *Queries) Load(endpoints []iptables.Endpoint, arrived func() uint64, log logger.Logger) lease.Load {
	cpu := u.limit.read()
	shed := u.shed.Load()
	l := lease.Load{Limit: cpu.Limit, Throttled: cpu.Throttled, Arrived: arrived() - shed}
	if l.Limit == 0 {
		// Under a limit this would count the pauses of the limit, too.
		l.Starved = cgroup.Starved("/")
		return l
	}
	l.Dropped = shed
	l.Waiting = uint64(max(u.busy.all.Load(), 0))
	queued, dropped, err := sockets.Buffers(endpoints)
	l.Queued, l.Dropped = queued, l.Dropped+u.limit.drops.count(dropped, u.Thinned() > 0)
	if err != nil {
		u.limit.refused.Do(func() {
			log.Warningf("the buffers of the listeners stay small, so more queries are lost when the CPU limit is used up: %v; give the container NET_ADMIN", err)
		})
	}
	return l
}
