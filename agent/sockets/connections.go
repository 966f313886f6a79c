package sockets

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// connection returns the descriptor of this process's TCP connection between
// the two transport addresses. CoreDNS does not pass the connection to handlers.
func connection(local, remote netip.AddrPort) (fd int, ok bool) {
	for _, fd := range descriptors() {
		if peer, ok := peerName(fd); ok && peer == remote && socketName(fd) == local {
			return fd, true
		}
	}
	return 0, false
}

// Connections lists this process's TCP connections at the endpoints.
func Connections(endpoints []iptables.Endpoint) []iptables.Connection {
	listen := transportAddresses(endpoints, iptables.TCP)
	var out []iptables.Connection
	for _, fd := range descriptors() {
		if c, ok := connectionOf(fd, listen); ok {
			out = append(out, c)
		}
	}
	return out
}

// connectionOf returns the TCP connection of a descriptor, if it is one at the
// transport addresses.
func connectionOf(fd int, listen map[netip.AddrPort]bool) (iptables.Connection, bool) {
	c := iptables.Connection{Listen: socketName(fd)}
	var connected bool
	if c.Client, connected = peerName(fd); !connected || !listen[c.Listen] {
		return c, false
	}
	t, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	return c, err == nil && t == unix.SOCK_STREAM
}

// descriptors lists this process's open files; none if /proc cannot be read.
func descriptors() []int {
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

func peerName(fd int) (netip.AddrPort, bool) {
	sa, err := unix.Getpeername(fd)
	if err != nil {
		return netip.AddrPort{}, false // no socket, or not connected
	}
	return transportAddress(sa), true
}

func socketName(fd int) netip.AddrPort {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return transportAddress(sa)
}

// transportAddresses returns the transport addresses of the endpoints with a protocol.
func transportAddresses(endpoints []iptables.Endpoint, proto iptables.Proto) map[netip.AddrPort]bool {
	out := make(map[netip.AddrPort]bool)
	for _, e := range endpoints {
		if e.Proto == proto {
			out[e.AddrPort()] = true
		}
	}
	return out
}

func transportAddress(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// cork holds back partial segments (tcp(7)), for 200 ms at most. Without it the
// end of the connection follows the answer in a segment of its own.
func cork(fd, on int) { _ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_CORK, on) }

// unread returns the number of received bytes that were not read.
func unread(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

// Unmap returns a transport address without the mapping of IPv4 into IPv6.
func Unmap(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// UDPPort returns the port to which a socket is bound.
func UDPPort(conn *net.UDPConn) uint16 {
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// Control calls f with the descriptor of a socket.
func Control(raw syscall.RawConn, f func(fd int) error) error {
	var inner error
	err := raw.Control(func(fd uintptr) { inner = f(int(fd)) })
	return errors.Join(err, inner)
}
