package sockets

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/sockets"
	"github.com/trackless-dns/trackless/iptables"
)

const (
	// room is the size of a listener's buffer, in bytes as the kernel counts them: some
	// 1,300 queries, those of 65 ms at 20,000 a second. For so long other processes may
	// keep this one from running. The kernel's default is 277.
	room = 1 << 20

	// leastRoom is the size when goroutines run late for long, so that checks, and the queries
	// of other clients, do not wait behind those of one client for longer than the lease:
	// the kernel's default (net.core.rmem_default).
	leastRoom = 212992

	// allRoom is the size of the buffers of all listeners together. The kernel may
	// charge them to the control group, whose memory limit leaves room for more.
	allRoom = 4 << 20
)

// ForQueries gives the UDP listeners of this process at the endpoints room for a burst of
// queries. It returns an error where the kernel grants less: beyond
// net.core.rmem_max it needs CAP_NET_ADMIN.
//
// It also ends that the kernel tells of each packet to which address it was sent, where
// a listener has but one: the DNS server would give the same back with each response,
// as its source.
func (l *UDPListeners) ForQueries(endpoints []iptables.Endpoint) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	listeners := l.find(endpoints)
	var errs []error
	for _, s := range listeners {
		errs = append(errs, enlarge(s.fd, roomOf(len(listeners))))
		if !sockets.AddressOf(s.own).Addr().IsUnspecified() {
			forgetDestinations(s)
		}
	}
	return errors.Join(errs...)
}

// Shorten makes the queues of the UDP listeners at the endpoints short, or ends that. It
// leaves those alone that are as large as a CPU limit needs.
func (l *UDPListeners) Shorten(endpoints []iptables.Endpoint, short bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	listeners := l.known(endpoints)
	for _, s := range listeners {
		if !short {
			_ = enlarge(s.fd, roomOf(len(listeners))) // as before
			continue
		}
		if size, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF); err == nil && size < bufferUnderLimit {
			_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, min(size, leastRoom)/2)
		}
	}
}

// roomOf is the size of the buffer of one of so many listeners.
func roomOf(listeners int) int { return min(room, allRoom/max(listeners, 1)) }

// forgetDestinations undoes what the DNS server has asked for (IP_PKTINFO in ip(7),
// IPV6_RECVPKTINFO in ipv6(7)). Where the kernel refuses, nothing changes.
func forgetDestinations(l listeningSocket) {
	switch l.own.(type) {
	case *unix.SockaddrInet4:
		_ = unix.SetsockoptInt(l.fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 0)
	case *unix.SockaddrInet6:
		_ = unix.SetsockoptInt(l.fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 0)
	}
}
