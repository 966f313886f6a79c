package socket

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/reuseport"
)

const (
	// probed is how many indexes are probed: more than sockets at an address of some
	// instances during an update.
	probed = 256

	// probesAtOnce are sent before we wait for a moment: those to indexes that no socket
	// has come to one socket, which may be another's, and must not fill its buffer.
	probesAtOnce = 32
	probePause   = 5 * time.Millisecond

	// probePatience is how long a probe may take over lo to a reader of ours.
	probePatience = 200 * time.Millisecond

	// Queries that come to CoreDNS's socket have us look where our sockets are, not more
	// often than lookEvery, and ever less often while that changes nothing.
	lookEvery  = time.Second
	lookSeldom = time.Minute

	// othersEvery is how often we look whether another instance still serves, before we take
	// the queries that its program keeps.
	othersEvery = time.Second
)

// steering is what brings queries to our sockets.
type steering struct {
	wake    chan struct{}
	arrived chan struct{} // a probe
	strayed atomic.Bool   // queries came to CoreDNS's socket

	mu      sync.Mutex
	left    bool            // Leave was called
	where   map[*socket]int // found by probes
	indexes []int           // in force; nil: none
}

func newSteering() steering {
	return steering{wake: make(chan struct{}, 1), arrived: make(chan struct{}, 1), where: map[*socket]int{}}
}

func (s *steering) look() { signal(s.wake) }

func (s *steering) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = true
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Stray is told that a query of a client has come to another socket at the address, which
// has no program of ours that is right. It does not wait.
func (g *Group) Stray() {
	if !g.steering.strayed.Load() && g.serving(time.Now()) != nil && !g.steering.strayed.Swap(true) {
		g.steering.look()
	}
}

// Steered reports whether queries of clients come to our sockets.
func (g *Group) Steered() bool {
	g.steering.mu.Lock()
	defer g.steering.mu.Unlock()
	return g.steering.indexes != nil
}

// steer brings queries to our sockets while the gate is open, until the context ends.
func (g *Group) steer(ctx context.Context) {
	s := &g.steering
	var next time.Time // before it we do not look again
	pause := lookEvery
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-s.wake:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		now := time.Now()
		switch {
		case g.serving(now) == nil:
			g.release()
			next, pause = time.Time{}, lookEvery
		case g.Steered() && !s.strayed.Load():
		case !s.strayed.Load() && g.config.Others():
			// Its program keeps the queries from us until it ends: nothing waits at our
			// sockets if we end first.
			timer.Reset(othersEvery)
		case now.Before(next):
			timer.Reset(next.Sub(now))
		default:
			s.strayed.Store(false)
			changed, err := g.point(ctx)
			if err != nil && ctx.Err() == nil && !errors.Is(err, errLeft) {
				g.config.Log.Warningf("%s: CoreDNS's own socket gets queries, too, which costs more CPU time: %v", g.at, err)
			}
			if changed && err == nil {
				pause = lookEvery
			} else {
				pause = min(2*pause, lookSeldom)
			}
			next = now.Add(pause)
			if err != nil {
				timer.Reset(pause)
			}
		}
	}
}

// point finds our sockets and has the kernel spread queries over them. It reports whether
// they were elsewhere before.
func (g *Group) point(ctx context.Context) (changed bool, err error) {
	before := g.attached()
	indexes, err := g.find(ctx, before)
	if err != nil {
		return true, err
	}
	if err := g.attach(indexes); err != nil {
		return true, err
	}
	return !slices.Equal(before, indexes), nil
}

func (g *Group) attached() []int {
	g.steering.mu.Lock()
	defer g.steering.mu.Unlock()
	return g.steering.indexes
}

// attach has the kernel spread queries over the sockets with the indexes.
func (g *Group) attach(indexes []int) error {
	code := g.probe.program(g.at.Addr(), indexes)
	g.steering.mu.Lock()
	defer g.steering.mu.Unlock()
	if g.steering.left {
		return errLeft
	}
	err := g.sockets[0].control(func(fd int) error {
		if _, err := unix.Getpeername(fd); err == nil {
			return errLeft
		}
		return reuseport.Attach(fd, code)
	})
	if err == nil {
		g.steering.indexes = indexes
	}
	return err
}

// errLeft means that our sockets are to get no more queries: they are connected.
var errLeft = errors.New("the queries are left to another instance")

// release leaves all queries to the kernel's own choice.
func (g *Group) release() {
	g.steering.mu.Lock()
	defer g.steering.mu.Unlock()
	if g.steering.indexes == nil {
		return
	}
	g.steering.indexes = nil
	if err := g.sockets[0].control(reuseport.Detach); err != nil && !errors.Is(err, unix.EBADF) {
		g.config.Log.Warningf("%s: other sockets at this address get no queries until it is closed: %v", g.at, err)
	}
}

// find returns the indexes of our sockets. Queries go on to where they went before.
func (g *Group) find(ctx context.Context, before []int) ([]int, error) {
	s := &g.steering
	s.mu.Lock()
	clear(s.where)
	s.mu.Unlock()
	if err := g.attach(before); err != nil {
		return nil, err
	}
	for i := range probed {
		p := g.probe.to(i)
		if _, err := g.prober.WriteToUDPAddrPort(p[:], g.at); err != nil {
			return nil, fmt.Errorf("find the sockets at %s: %w", g.at, err)
		}
		if (i+1)%probesAtOnce == 0 {
			if indexes := g.await(ctx, probePause); indexes != nil {
				return indexes, nil
			}
		}
	}
	if indexes := g.await(ctx, probePatience); indexes != nil {
		return indexes, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("not all of %d sockets are found within %v", len(g.sockets), probePatience)
}

// await waits until the indexes of all our sockets are known, and returns nil if they are not
// within the time.
func (g *Group) await(ctx context.Context, most time.Duration) []int {
	timeout := time.NewTimer(most)
	defer timeout.Stop()
	for {
		if indexes := g.where(); indexes != nil {
			return indexes
		}
		select {
		case <-g.steering.arrived:
		case <-timeout.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// where returns the indexes of our sockets, nil while one is not known.
func (g *Group) where() []int {
	s := &g.steering
	s.mu.Lock()
	defer s.mu.Unlock()
	indexes := make([]int, len(g.sockets))
	for i, socket := range g.sockets {
		index, known := s.where[socket]
		if !known {
			return nil
		}
		indexes[i] = index
	}
	return indexes
}

// found records that a probe for the index has come to a socket. The lowest index is its
// own: those that no socket has lead to any.
func (g *Group) found(s *socket, index int) {
	g.steering.mu.Lock()
	defer g.steering.mu.Unlock()
	if known, ok := g.steering.where[s]; !ok || index < known {
		g.steering.where[s] = index
	}
	signal(g.steering.arrived)
}
