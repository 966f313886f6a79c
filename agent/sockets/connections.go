package sockets

import (
	"errors"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/sockets"
	"github.com/trackless-dns/trackless/iptables"
)

// connection returns the descriptor of this process's TCP connection between
// the two transport addresses. CoreDNS does not pass the connection to handlers.
func connection(local, remote netip.AddrPort) (fd int, ok bool) {
	for _, fd := range sockets.Descriptors() {
		if peer, ok := peerName(fd); ok && peer == remote && sockets.NameOf(fd) == local {
			return fd, true
		}
	}
	return 0, false
}

// Connections lists this process's TCP connections at the endpoints.
func Connections(endpoints []iptables.Endpoint) []iptables.Connection {
	listen := transportAddresses(endpoints, iptables.TCP)
	var out []iptables.Connection
	for _, fd := range sockets.Descriptors() {
		if c, ok := connectionOf(fd, listen); ok {
			out = append(out, c)
		}
	}
	return out
}

// connectionOf returns the TCP connection of a descriptor, if it is one at the
// transport addresses.
func connectionOf(fd int, listen map[netip.AddrPort]bool) (iptables.Connection, bool) {
	c := iptables.Connection{Listen: sockets.NameOf(fd)}
	var connected bool
	if c.Client, connected = peerName(fd); !connected || !listen[c.Listen] {
		return c, false
	}
	t, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	return c, err == nil && t == unix.SOCK_STREAM
}

func peerName(fd int) (netip.AddrPort, bool) {
	sa, err := unix.Getpeername(fd)
	if err != nil {
		return netip.AddrPort{}, false // no socket, or not connected
	}
	return sockets.AddressOf(sa), true
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
