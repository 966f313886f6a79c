package socket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/fastpath"
	"github.com/trackless-dns/trackless/internal/logger"
)

// Config configures a Group.
type Config struct {
	// At is the listen address and port.
	At netip.AddrPort
	// Sockets is their number, up to MaxSockets.
	Sockets    int
	Accountant *fastpath.Accountant
	// Leave tells of clients whose queries CoreDNS must see; nil: there are none.
	Leave func(client netip.AddrPort) bool
	// Others reports whether another instance serves clients at the address.
	Others func() bool
	// Panicked is told of each panic that a query has caused in a reader.
	Panicked func(fault any)
	Log      logger.Logger
}

// MaxSockets is the largest number of sockets of a group: the kernel's program has two
// instructions for each.
const MaxSockets = 64

// A Group has the sockets at one listen address. They share the address with CoreDNS's,
// and with those of other instances. Queries of clients come to them while a table is in
// use, the gate is open, and no other instance keeps them; a query that they do not answer from the cache is passed to
// CoreDNS's server. Its methods may be called from several goroutines at once.
type Group struct {
	config  Config
	at      netip.AddrPort
	sockets []*socket
	probe   probe
	prober  *net.UDPConn

	table atomic.Pointer[Table]
	until atomic.Int64 // the gate is open, in nanoseconds since began
	began time.Time

	steering steering
	closed   atomic.Bool
	cancel   context.CancelFunc
	tasks    sync.WaitGroup

	mu      sync.Mutex
	readers bool // they run
}

// Open opens the sockets. They get queries at once if no program of another instance keeps
// these from them. The queries wait until Use.
func Open(c Config) (*Group, error) {
	g := &Group{config: c, at: c.At, probe: newProbe(), began: time.Now(), steering: newSteering()}
	for range c.Sockets {
		s, err := g.open()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open a socket for cached answers at %s: %w", c.At, err), g.closeAll())
		}
		g.sockets = append(g.sockets, s)
	}
	var err error
	if g.prober, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.At.Addr(), 0))); err != nil {
		return nil, errors.Join(fmt.Errorf("open a socket that finds those at %s: %w", c.At, err), g.closeAll())
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	g.tasks.Go(func() { g.steer(ctx) })
	return g, nil
}

func (g *Group) open() (*socket, error) {
	network := "udp4"
	if g.at.Addr().Is6() {
		network = "udp6"
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		ctl := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		})
		return errors.Join(ctl, err)
	}}
	conn, err := lc.ListenPacket(context.Background(), network, g.at.String())
	if err != nil {
		return nil, err
	}
	udp := conn.(*net.UDPConn)
	raw, err := udp.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, udp.Close())
	}
	return &socket{group: g, conn: udp, raw: raw, batch: newBatch(), counters: map[counted]Counter{}}, nil
}

// Use puts a table in use, nil for none. It returns a net.PacketConn for each socket, from
// which CoreDNS's server gets all queries from now on that are not answered here. Those
// that were returned before end when the queries that wait in them are read.
func (g *Group) Use(t *Table) []*Conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.table.Store(t)
	conns := make([]*Conn, len(g.sockets))
	for i, s := range g.sockets {
		conns[i] = newConn(s)
		if before := s.to.Swap(conns[i]); before != nil {
			_ = before.Close() // never fails
		}
	}
	if !g.readers {
		g.readers = true
		for _, s := range g.sockets {
			g.tasks.Go(s.read)
		}
	}
	g.steering.look()
	return conns
}

// Until opens the gate until a time. One that has passed closes it: CoreDNS's server gets
// all queries. It does not wait.
func (g *Group) Until(t time.Time) {
	now := time.Now()
	before := g.until.Swap(int64(t.Sub(g.began)))
	if (before > int64(now.Sub(g.began))) != t.After(now) {
		g.steering.look()
	}
}

// serving returns the table by which queries are answered, nil if they are not.
func (g *Group) serving(now time.Time) *Table {
	if int64(now.Sub(g.began)) >= g.until.Load() {
		return nil
	}
	return g.table.Load()
}

// At returns the listen address and port.
func (g *Group) At() netip.AddrPort { return g.at }

// Len returns the number of sockets.
func (g *Group) Len() int { return len(g.sockets) }

// Counts are the queries that came to the sockets of a Group.
type Counts struct {
	Hits, Passed uint64
	// Dropped found no room on their way to CoreDNS's server.
	Dropped uint64
}

// Counts returns the queries so far.
func (g *Group) Counts() (c Counts) {
	for _, s := range g.sockets {
		c.Hits += s.answered.Load()
		c.Passed += s.passed.Load()
		c.Dropped += s.dropped.Load()
	}
	return c
}

// Leave lets queries go to other sockets at the address: those that wait here are still
// read. It returns when no more wait, or the context ends.
func (g *Group) Leave(ctx context.Context) {
	g.steering.leave()
	g.release()
	for _, s := range g.sockets {
		// The kernel gives a connected socket packets of its peer only, which is itself.
		_ = s.control(func(fd int) error {
			own, err := unix.Getsockname(fd)
			if err != nil {
				return err
			}
			return unix.Connect(fd, own)
		})
	}
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for g.waiting() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// stuckFor is how long a packet may wait for a reader that does nothing: longer than
// goroutines run late under a flood, and shorter than a lease.
const stuckFor = 300 * time.Millisecond

// stall is what is known of one that takes packets.
type stall struct {
	since time.Time // packets have waited since then; zero: none waited
	taken uint64    // until then
}

// lasts reports whether packets wait for one that does nothing: they waited at an earlier
// call, too, and it has taken none since.
func (s *stall) lasts(waits bool, taken uint64, now time.Time) bool {
	switch {
	case !waits:
		s.since = time.Time{}
	case s.since.IsZero() || s.taken != taken:
		s.since, s.taken = now, taken
	default:
		return now.Sub(s.since) >= stuckFor
	}
	return false
}

// Stuck reports whether queries wait for a reader, or for CoreDNS's server behind it, that
// does nothing. It is to be called several times.
func (g *Group) Stuck() (stuck bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	for _, s := range g.sockets {
		taken := s.rounds.Load()
		stuck = s.reading.lasts(s.waits(), taken, now) || stuck
		if c := s.to.Load(); c != nil {
			taken := c.taken.Load()
			stuck = s.serving.lasts(len(c.queue) > 0, taken, now) || stuck
		}
	}
	return stuck
}

// waiting reports whether a packet waits in one of the sockets.
func (g *Group) waiting() bool { return slices.ContainsFunc(g.sockets, (*socket).waits) }

// waits reports whether a packet waits in the socket.
func (s *socket) waits() bool {
	n := 0
	err := s.control(func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
		return err
	})
	return err == nil && n > 0
}

// Close closes the sockets, and ends the conns that Use has returned. Call Leave before,
// and let the servers of the conns end between.
func (g *Group) Close() error {
	g.closed.Store(true)
	g.cancel()
	err := g.closeAll()
	g.tasks.Wait()
	for _, s := range g.sockets {
		if c := s.to.Load(); c != nil {
			_ = c.Close() // never fails
		}
	}
	return err
}

func (g *Group) closeAll() error {
	var errs []error
	for _, s := range g.sockets {
		errs = append(errs, s.conn.Close())
	}
	if g.prober != nil {
		errs = append(errs, g.prober.Close())
	}
	return errors.Join(errs...)
}

func (s *socket) control(f func(fd int) error) error {
	var err error
	ctl := s.raw.Control(func(fd uintptr) { err = f(int(fd)) })
	return errors.Join(ctl, err)
}
