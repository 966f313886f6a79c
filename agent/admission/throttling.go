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

// throttling follows the CPU limit of this process. The zero value is ready.
type throttling struct {
	sum  atomic.Int64 // nanoseconds for which it was used up, at the last look
	at   atomic.Int64 // when that was more than at the look before, in nanoseconds of the Unix time
	read func() cgroup.CPU

	refused sync.Once // says that buffers stay small
}

// throttledFor is how long after that the process counts as throttled.
const throttledFor = time.Second

// look returns the limit, and notes whether it was used up since the last look.
func (t *throttling) look() cgroup.CPU {
	read := t.read
	if read == nil {
		read = readCPULimit
	}
	cpu := read()
	if t.sum.Swap(int64(cpu.Throttled)) < int64(cpu.Throttled) {
		t.at.Store(time.Now().UnixNano())
	}
	return cpu
}

// lately reports whether the limit was used up a moment ago.
func (t *throttling) lately(now time.Time) bool {
	return now.UnixNano()-t.at.Load() < int64(throttledFor)
}

func readCPULimit() cgroup.CPU { return cgroup.CPULimit("/") }

// Load returns what the kernel has made of this process and of the queries to the
// endpoints. arrived counts those that have come.
func (u *Queries) Load(endpoints []iptables.Endpoint, arrived func() uint64, log logger.Logger) lease.Load {
	cpu := u.limit.look()
	shed := u.shed.Load()
	l := lease.Load{Limit: cpu.Limit, Throttled: cpu.Throttled, Arrived: arrived() - shed}
	if l.Limit == 0 {
		// Under a limit this would tell of its pauses as well.
		l.Starved = cgroup.Starved("/")
		return l
	}
	l.Dropped = shed
	l.Waiting = uint64(max(u.busy.all.Load(), 0))
	queued, dropped, err := sockets.Buffers(endpoints)
	l.Queued, l.Dropped = queued, l.Dropped+dropped
	if err != nil {
		u.limit.refused.Do(func() {
			log.Warningf("the buffers of the listeners stay small under a CPU limit, so that more queries are lost when it is used up: %v; give the container NET_ADMIN", err)
		})
	}
	return l
}
