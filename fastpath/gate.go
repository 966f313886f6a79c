package fastpath

import (
	"net/netip"
	"sync"
	"time"
)

// A Gate keeps fast paths open for the listen addresses whose leases are held, and
// only as long as they are held. A process that hangs does not renew its leases, so
// the fast paths close without it. The zero value is ready and closed.
type Gate struct {
	mu     sync.Mutex
	leases map[netip.Addr]time.Time
	doors  map[*door]struct{}
}

type door struct{ tell func(netip.Addr, time.Time) }

// Join adds a fast path, and leave removes it. tell tells it until when it may answer at
// an address; a time that has passed closes it. tell runs under locks: it must not wait,
// nor do I/O.
func (g *Gate) Join(tell func(a netip.Addr, until time.Time)) (leave func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.doors == nil {
		g.doors = map[*door]struct{}{}
	}
	d := &door{tell}
	g.doors[d] = struct{}{}
	for a, until := range g.leases {
		tell(a, until)
	}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.doors, d)
	}
}

// Held tells the gate of all leases that are held and until when. It closes the fast
// paths for other addresses at once.
func (g *Gate) Held(leases map[netip.Addr]time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for a := range g.leases {
		if _, held := leases[a]; !held {
			g.tell(a, time.Time{})
		}
	}
	for a, until := range leases {
		if !g.leases[a].Equal(until) {
			g.tell(a, until)
		}
	}
	g.leases = leases
}

// Close closes the gate for all addresses at once.
func (g *Gate) Close() { g.Held(nil) }

func (g *Gate) tell(a netip.Addr, until time.Time) {
	for d := range g.doors {
		d.tell(a, until)
	}
}
