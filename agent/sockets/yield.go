package sockets

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/reuseport"
	"github.com/trackless-dns/trackless/internal/sockets"
	"github.com/trackless-dns/trackless/iptables"
)

// LeaveToOthers implements [reconcile.Config.Yield] for UDP. Closing a listening socket
// while packets arrive would lose the packets in its queue. TCP needs no such care: its
// connections are closed after an answer.
func LeaveToOthers(endpoints []iptables.Endpoint) error {
	return yieldSockets(sockets.Descriptors(), endpoints)
}

// yieldSockets connects the sockets that listen at the endpoints to themselves: no packets
// arrive from there. In a group with SO_REUSEPORT the kernel chooses no connected socket
// (reuseport_select_sock_by_hash, Linux 5.4). Queries in its queue can still be read, and
// answered with sendmsg.
func yieldSockets(fds []int, endpoints []iptables.Endpoint) error {
	var errs []error
	detached := map[netip.AddrPort]bool{}
	for _, s := range listeningUDP(fds, endpoints) {
		if reuse, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT); err != nil || reuse == 0 {
			continue
		}
		// The program may choose our sockets, and some kernels let it choose connected ones,
		// too (Linux 5.10; 6.18 does not). The other instance attaches its own, perhaps
		// before we have come to the next socket.
		if at := sockets.AddressOf(s.own); !detached[at] {
			_ = reuseport.Detach(s.fd)
			detached[at] = true
		}
		if err := unix.Connect(s.fd, s.own); err != nil {
			errs = append(errs, fmt.Errorf("leave queries to %s to another instance: connect the socket to itself: %w", sockets.AddressOf(s.own), err))
		}
	}
	return errors.Join(errs...)
}

// listeningSocket is a socket that receives queries over UDP, and its address.
type listeningSocket struct {
	fd  int
	own unix.Sockaddr
}

// listeningUDP returns the sockets that listen at the endpoints over UDP.
func listeningUDP(fds []int, endpoints []iptables.Endpoint) (out []listeningSocket) {
	listen, ports := transportAddresses(endpoints, iptables.UDP), map[uint16]bool{}
	for at := range listen {
		ports[at.Port()] = true
	}
	for _, fd := range fds {
		t, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		if err != nil || t != unix.SOCK_DGRAM {
			continue
		}
		own, err := unix.Getsockname(fd)
		if err != nil {
			continue
		}
		if at := sockets.AddressOf(own); !listen[at] && (!at.Addr().IsUnspecified() || !ports[at.Port()]) {
			continue
		}
		if _, connected := peerName(fd); !connected {
			out = append(out, listeningSocket{fd, own})
		}
	}
	return out
}
