package notrack

import (
	"encoding/binary"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/cgroup"
	"github.com/trackless-dns/trackless/iptables"
)

// throttling follows the CPU limit of this process. The zero value is ready.
type throttling struct {
	sum  atomic.Int64 // nanoseconds for which it was used up, at the last look
	at   atomic.Int64 // when that was more than at the look before, in nanoseconds of the Unix time
	read func() cgroup.CPU
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

// load implements [iptables.Kernel.Load].
func (p *contract) load(endpoints []iptables.Endpoint) iptables.Load {
	u := &p.misses.underWay
	cpu := u.limit.look()
	shed := u.shed.Load()
	l := iptables.Load{Limit: cpu.Limit, Throttled: cpu.Throttled, Arrived: p.served.arrived.Load() - shed}
	if l.Limit == 0 {
		// Under a limit this would tell of its pauses as well.
		l.Starved = cgroup.Starved("/")
		return l
	}
	l.Dropped = shed
	l.Waiting = uint64(max(u.busy.all.Load(), 0))
	for _, s := range listeningUDP(descriptors(), endpoints) {
		l.Dropped += droppedAt(s.fd)
	}
	return l
}

// droppedAt is how many packets a socket's buffer had no room for (SO_MEMINFO, since
// Linux 4.12; include/uapi/linux/sock_diag.h, SK_MEMINFO_DROPS).
func droppedAt(fd int) uint64 {
	const words, drops = 9, 8
	var info [words * 4]byte
	size := uint32(len(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 || size < uint32(len(info)) {
		return 0
	}
	return uint64(binary.NativeEndian.Uint32(info[drops*4:]))
}
