package sockets

import (
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// IsOwn reports whether a socket of this process is bound to the address: a TCP socket or a
// UDP socket. It checks all files of the process.
func IsOwn(addr netip.AddrPort, tcp bool) bool {
	kind := unix.SOCK_DGRAM
	if tcp {
		kind = unix.SOCK_STREAM
	}
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return false
	}
	names, _ := dir.Readdirnames(-1)
	_ = dir.Close()
	for _, name := range names {
		fd, err := strconv.Atoi(name)
		if err != nil || boundTo(fd) != addr {
			continue
		}
		if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err == nil && got == kind {
			return true
		}
	}
	return false
}

// boundTo returns the local address of a socket, or the zero value if fd is not an IP
// socket.
func boundTo(fd int) netip.AddrPort {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
