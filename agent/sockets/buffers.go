package sockets

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/sockets"
	"github.com/trackless-dns/trackless/iptables"
)

const (
	// bufferUnderLimit is the size of a listener's buffer under a CPU limit, in bytes as
	// the kernel counts them: some 2,700 queries. Queries wait there while the process
	// does not run, until they fail over to kube-dns.
	bufferUnderLimit = 2 << 20

	// bytesPerQuery is the memory that the kernel counts for a query (truesize of a small packet
	// from a veth, Linux 6.18, x86-64).
	bytesPerQuery = 768
)

// Buffers returns about how many queries wait in the buffers of our listeners at the
// endpoints, and how many were dropped because a buffer was full. It enlarges small buffers
// to the size that is needed under a CPU limit, and returns an error if it cannot.
func Buffers(endpoints []iptables.Endpoint) (queued, dropped uint64, err error) {
	for _, s := range listeningUDP(sockets.Descriptors(), endpoints) {
		q, d := bufferOf(s.fd)
		queued, dropped = queued+q, dropped+d
		if e := enlarge(s.fd, bufferUnderLimit); e != nil && err == nil {
			err = e
		}
	}
	return queued, dropped, err
}

// enlarge gives a listener a buffer of at least so many bytes as the kernel counts them.
// If that needs a capability that we lack, it gives what there is, and returns an error.
func enlarge(fd, bytes int) error {
	size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil || size >= bytes {
		return err
	}
	// The kernel doubles the value (socket(7)).
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes/2); err != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bytes/2)
	}
	return err
}

// bufferOf returns about how many queries are in a socket's buffer, and how many were
// dropped because it was full (SO_MEMINFO, since Linux 4.12; include/uapi/linux/sock_diag.h,
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
