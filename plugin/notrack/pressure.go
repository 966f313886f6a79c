package notrack

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/cgroup"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile"
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

// load implements [reconcile.Kernel.Load].
func (p *contract) load(endpoints []iptables.Endpoint) reconcile.Load {
	u := &p.misses.underWay
	cpu := u.limit.look()
	shed := u.shed.Load()
	l := reconcile.Load{Limit: cpu.Limit, Throttled: cpu.Throttled, Arrived: p.served.arrived.Load() - shed}
	if l.Limit == 0 {
		// Under a limit this would tell of its pauses as well.
		l.Starved = cgroup.Starved("/")
		return l
	}
	l.Dropped = shed
	l.Waiting = uint64(max(u.busy.all.Load(), 0))
	for _, s := range listeningUDP(descriptors(), endpoints) {
		queued, dropped := bufferOf(s.fd)
		l.Queued, l.Dropped = l.Queued+queued, l.Dropped+dropped
		if err := enlarge(s.fd); err != nil {
			u.limit.refused.Do(func() {
				log.Warningf("the buffers of the listeners stay small under a CPU limit, so that more queries are lost when it is used up: %v; give the container NET_ADMIN", err)
			})
		}
	}
	return l
}

const (
	// roomUnderLimit is the size of a listener's buffer under a CPU limit, in bytes as
	// the kernel counts them: some 2,700 queries. Those that come while the process
	// does not run, and until kube-dns is asked in its place, wait there.
	roomUnderLimit = 2 << 20

	// bytesPerQuery is what the kernel counts for a query (truesize of a small packet
	// from a veth, Linux 6.18, x86-64).
	bytesPerQuery = 768
)

// enlarge gives a listener the buffer that it needs under a CPU limit.
func enlarge(fd int) error {
	size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil || size >= roomUnderLimit {
		return err
	}
	// The kernel doubles what is asked for (socket(7)).
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, roomUnderLimit/2)
}

// bufferOf is about how many queries are in a socket's buffer, and for how many there
// was no room so far (SO_MEMINFO, since Linux 4.12; include/uapi/linux/sock_diag.h,
// SK_MEMINFO_RMEM_ALLOC and SK_MEMINFO_DROPS).
func bufferOf(fd int) (queued, dropped uint64) {
	const words, allocated, drops = 9, 0, 8
	var info [words * 4]byte
	size := uint32(len(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 || size < uint32(len(info)) {
		return 0, 0
	}
	word := func(i int) uint64 { return uint64(binary.NativeEndian.Uint32(info[i*4:])) }
	return word(allocated) / bytesPerQuery, word(drops)
}
