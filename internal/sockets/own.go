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
	for _, fd := range Descriptors() {
		if NameOf(fd) != addr {
			continue
		}
		if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err == nil && got == kind {
			return true
		}
	}
	return false
}

// Descriptors lists this process's open files; none if /proc cannot be read.
func Descriptors() []int {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return nil
	}
	defer func() { _ = dir.Close() }()
	names, _ := dir.Readdirnames(-1)
	fds := make([]int, 0, len(names))
	for _, name := range names {
		if fd, err := strconv.Atoi(name); err == nil {
			fds = append(fds, fd)
		}
	}
	return fds
}

// NameOf returns the local address of a socket, or the zero value if fd is not an IP socket.
func NameOf(fd int) netip.AddrPort {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return AddressOf(sa)
}

// AddressOf returns the transport address, or the zero value if it is not one of IP.
func AddressOf(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
