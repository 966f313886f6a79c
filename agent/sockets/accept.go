package sockets

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// Listeners looks at this process's TCP listeners. The zero value is ready.
type Listeners struct {
	mu    sync.Mutex
	known map[iptables.Endpoint][]int // their descriptors, which may be others' by now
}

// Waiting reports whether a connection to the endpoint waits for a listener of ours to
// accept it. It reports false where the kernel does not say.
func (l *Listeners) Waiting(e iptables.Endpoint) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	fds := l.known[e]
	for _, fd := range fds {
		if !accepts(fd, e) {
			fds = nil
			break
		}
	}
	if len(fds) == 0 {
		for _, fd := range descriptors() {
			if accepts(fd, e) {
				fds = append(fds, fd)
			}
		}
		if l.known == nil {
			l.known = map[iptables.Endpoint][]int{}
		}
		l.known[e] = fds
	}
	for _, fd := range fds {
		// Of a listener it is the number of those (tcp_get_info, net/ipv4/tcp.c).
		if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil && info.Unacked > 0 {
			return true
		}
	}
	return false
}

// accepts reports whether a descriptor is that of a TCP listener at the endpoint.
func accepts(fd int, e iptables.Endpoint) bool {
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || listens == 0 {
		return false
	}
	at := socketName(fd)
	return at.Port() == e.Port && (at.Addr() == e.Addr || at.Addr().IsUnspecified())
}
