package sockets

import (
	"slices"
	"sync"

	"github.com/trackless-dns/trackless/internal/sockets"
	"github.com/trackless-dns/trackless/iptables"
)

// UDPListeners are the UDP listeners of this process. They remember which descriptors these are:
// a search looks at all files of the process, and beside a flood each of its system calls waits
// for a turn of the scheduler. The zero value is ready, and it is safe for concurrent use.
type UDPListeners struct {
	mu      sync.Mutex
	at      []iptables.Endpoint // where fds listen
	fds     []int
	thinned []iptables.Endpoint // of the listeners that have filters
}

// find searches the listeners at the endpoints, and remembers them.
func (l *UDPListeners) find(endpoints []iptables.Endpoint) []listeningSocket {
	found := listeningUDP(sockets.Descriptors(), endpoints)
	l.at, l.fds = slices.Clone(endpoints), nil
	for _, s := range found {
		l.fds = append(l.fds, s.fd)
	}
	return found
}

// known returns the listeners at the endpoints that were found last, unless some of them no longer
// listen there.
func (l *UDPListeners) known(endpoints []iptables.Endpoint) []listeningSocket {
	if slices.Equal(endpoints, l.at) && len(l.fds) > 0 {
		if found := listeningUDP(l.fds, endpoints); len(found) == len(l.fds) {
			return found
		}
	}
	return l.find(endpoints)
}
