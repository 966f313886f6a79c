package sockets

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/sockets"
	"github.com/trackless-dns/trackless/iptables"
)

// Listeners looks at this process's TCP listeners. The zero value is ready.
type Listeners struct {
	mu    sync.Mutex
	known map[iptables.Endpoint]listeners
}

// listeners are descriptors as they were at a time. They may be others' by now.
type listeners struct {
	fds []int
	at  time.Time
}

// listenersFor is how long descriptors are taken for what they were. Their listeners
// last as long as a Corefile.
const listenersFor = time.Minute

// Waiting reports whether a connection to the endpoint waits for a listener of ours to
// accept it. It reports false where the kernel does not say. It costs a system call
// for each listener.
func (l *Listeners) Waiting(e iptables.Endpoint) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := l.known[e]
	if time.Since(known.at) < listenersFor {
		if waiting, ok := known.waiting(e); ok {
			return waiting
		}
	}
	known = listeners{at: time.Now()}
	for _, fd := range sockets.Descriptors() {
		if accepts(fd, e) {
			known.fds = append(known.fds, fd)
		}
	}
	if l.known == nil {
		l.known = map[iptables.Endpoint]listeners{}
	}
	l.known[e] = known
	waiting, _ := known.waiting(e)
	return waiting
}

// waiting reports whether a connection waits for one of the listeners, and that all
// of them are still there.
func (l *listeners) waiting(e iptables.Endpoint) (waiting, ok bool) {
	const listens = 10 // TCP_LISTEN of net/tcp_states.h
	for _, fd := range l.fds {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil || info.State != listens {
			return false, false
		}
		if queued(info) > 0 {
			return true, accepts(fd, e)
		}
	}
	return false, len(l.fds) > 0
}

// queued is how many connections wait for a listener to accept them (tcp_get_info,
// net/ipv4/tcp.c).
func queued(listener *unix.TCPInfo) int { return int(listener.Unacked) }

// toAccept is how many connections wait for the listener of a descriptor to accept them; 0
// where the kernel does not say.
func toAccept(fd int) int {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0
	}
	return queued(info)
}

// accepts reports whether a descriptor is that of a TCP listener at the endpoint.
func accepts(fd int, e iptables.Endpoint) bool {
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || listens == 0 {
		return false
	}
	at := sockets.NameOf(fd)
	return at.Port() == e.Port && (at.Addr() == e.Addr || at.Addr().IsUnspecified())
}
