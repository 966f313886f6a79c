package sockets

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/sockets"
	"github.com/trackless-dns/trackless/iptables"
)

const (
	// A scan of the connections takes a thousandth of a millisecond for each open file. The
	// next one is guardRest later at least, and guardShare times the processor time that the
	// scan took. Beside a flood it waits much longer for the processor, when it matters most.
	guardRest  = 20 * time.Millisecond
	guardShare = 10

	// A client that had as many connections as it may gets more only slowly for reopens, as
	// trickle of its requests pass: those that were refused are repeated, thousands of a
	// storm, as soon as the server closes some that ask nothing.
	reopens = 10 * time.Second
	trickle = 1.0 / 16

	// A client that has only 1/fewConnections of what it may counts as one that never had more.
	fewConnections = 8
)

// A Guard bounds this process's TCP connections at its listen addresses, of each client and
// in all. Each holds a goroutine, buffers and a file, even if no query comes. CoreDNS
// accepts them itself, so the guard looks when the kernel says that one has come, and resets
// those that are too many: the ones that have been silent for longest. As long as a client
// has as many as it may, the kernel drops its requests for more, which the client repeats
// after a second, and for some time after that most of them. It costs nothing while nobody connects. The zero value bounds nothing; its
// methods are safe for concurrent use.
type Guard struct {
	// PerClient and All are the bounds. They must be set before Follow.
	PerClient, All int

	// Reset, if set, is called for each connection that was reset, with its client.
	Reset func(client netip.Addr)

	mu     sync.Mutex
	events *os.File // an epoll file with the listeners; nil: closed
	ended  chan struct{}
	listen []iptables.Endpoint
}

// Follow guards the listeners of this process at the endpoints from now on, too.
func (g *Guard) Follow(endpoints []iptables.Endpoint) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.PerClient <= 0 {
		return nil
	}
	if g.events == nil {
		if err := g.open(); err != nil {
			return fmt.Errorf("bound the TCP connections of each client: %w", err)
		}
	}
	raw, err := g.events.SyscallConn()
	if err != nil {
		return err // closed; cannot be
	}
	former := slices.DeleteFunc(slices.Clone(g.listen), func(e iptables.Endpoint) bool { return slices.Contains(endpoints, e) })
	if len(former) > 0 {
		g.refuse(former, nil, 1) // these listeners may stay without a guard
	}
	g.listen = endpoints
	for _, fd := range sockets.Descriptors() {
		if !listens(fd, endpoints) {
			continue
		}
		err := Control(raw, func(epoll int) error {
			return unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(fd)})
		})
		if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EBADF) { // followed already, or closed
			return fmt.Errorf("bound the TCP connections of each client at %s: %w", sockets.NameOf(fd), err)
		}
	}
	return nil
}

// Close ends the guard.
func (g *Guard) Close() {
	g.mu.Lock()
	events, ended := g.events, g.ended
	g.events = nil
	g.mu.Unlock()
	if events != nil {
		_ = events.Close()
		<-ended
	}
}

// allow lets all clients connect again: the listeners may stay after the guard.
func (g *Guard) allow(r *refused) {
	if len(r.full) == 0 {
		return
	}
	g.mu.Lock()
	listen := g.listen
	g.mu.Unlock()
	g.refuse(listen, nil, 1)
}

// open begins to wait for connections. The runtime's poller has the epoll file, so that
// no thread waits.
func (g *Guard) open() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return err
	}
	g.events, g.ended = os.NewFile(uintptr(fd), "connections"), make(chan struct{})
	go g.run(g.events, g.ended)
	return nil
}

func (g *Guard) run(events *os.File, ended chan<- struct{}) {
	defer close(ended)
	var r refused
	defer func() { g.allow(&r) }()
	raw, err := events.SyscallConn()
	for err == nil {
		woken := false
		err = raw.Read(func(fd uintptr) bool {
			var got [16]unix.EpollEvent
			n, err := unix.EpollWait(int(fd), got[:], 0)
			done := woken || n > 0 || err != nil && err != unix.EINTR
			woken = true // when it is called again: by then the server may have accepted it
			return done
		})
		// The kernel says nothing of a connection that the server accepts at once. So it
		// is not relied on while there are many.
		for many := err == nil; many; {
			time.Sleep(guardRest) // more connections come, and these are accepted
			took := processorTime(func() { many = g.scan(events, &r) })
			time.Sleep(guardShare * took)
		}
	}
}

// processorTime calls f, and returns for how long it ran on a processor.
func processorTime(f func()) time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began := threadTime()
	f()
	return threadTime() - began
}

// threadTime is the processor time of this thread so far (clock_gettime(2)).
func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		return 0 // cannot fail
	}
	return time.Duration(t.Nano())
}

// connectionFile is a connection and its descriptor, which may be another file's by now.
type connectionFile struct {
	iptables.Connection
	fd int
}

// refused are the clients whose requests for connections the kernel drops.
type refused struct {
	full map[netip.Addr]time.Time // when each of them had as many as it may
	pass float64                  // the part of their requests that passes
}

// scan resets the connections that are too many, and updates which clients are refused. It
// reports whether a client has more than half as many as it may, or is refused.
func (g *Guard) scan(events *os.File, r *refused) (many bool) {
	g.mu.Lock()
	listen, closed := g.listen, g.events != events
	g.mu.Unlock()
	if closed {
		return false
	}
	at := transportAddresses(listen, iptables.TCP)
	byClient, all, queued := map[netip.Addr][]connectionFile{}, 0, 0
	for _, fd := range sockets.Descriptors() {
		if c, ok := connectionOf(fd, at); ok {
			byClient[c.Client.Addr()] = append(byClient[c.Client.Addr()], connectionFile{c, fd})
			all++
		} else if listens(fd, listen) {
			queued += toAccept(fd)
		}
	}
	most := g.PerClient
	if all > g.All {
		most = min(most, max(1, g.All/len(byClient)))
	}
	now, before := time.Now(), *r
	*r = refused{full: map[netip.Addr]time.Time{}, pass: trickle}
	for client, conns := range byClient {
		// Connections that are not accepted yet are most likely of a client that has many.
		hasMany := len(conns) > most/2
		last, was := before.full[client]
		switch {
		case len(conns) >= most || hasMany && len(conns)+queued >= most || was && len(conns) > most*3/4:
			r.full[client], r.pass = now, 0
		case was && now.Sub(last) < reopens && len(conns) > most/fewConnections:
			r.full[client] = last
		}
		many = many || hasMany
	}
	if len(r.full) == 0 {
		r.pass = 1
	}
	if r.differs(&before) {
		g.refuse(listen, slices.Collect(maps.Keys(r.full)), r.pass) // before more come
	}
	for client, conns := range byClient {
		for _, c := range silentest(conns, len(conns)-most) {
			if end(c.fd, c.Connection, unix.SHUT_RDWR) == nil && g.Reset != nil {
				g.Reset(client)
			}
		}
	}
	return many || len(r.full) > 0
}

// differs reports whether others are refused, or another part of their requests.
func (r *refused) differs(before *refused) bool {
	same := func(time.Time, time.Time) bool { return true }
	return !maps.EqualFunc(r.full, before.full, same) || len(r.full) > 0 && r.pass != before.pass
}

// refuse has the kernel drop all but a part of the requests for connections of the clients.
// Where it cannot, connections that are too many are reset all the same.
func (g *Guard) refuse(endpoints []iptables.Endpoint, clients []netip.Addr, pass float64) {
	clients = others(clients, endpoints)
	for _, fd := range sockets.Descriptors() {
		switch {
		case !listens(fd, endpoints):
		case len(clients) == 0:
			_ = detach(fd)
		default:
			_ = attach(fd, synFilter(clients, pass))
		}
	}
}

// listens reports whether a descriptor is that of a TCP listener at one of the endpoints.
func listens(fd int, endpoints []iptables.Endpoint) bool {
	return slices.ContainsFunc(endpoints, func(e iptables.Endpoint) bool { return e.Proto == iptables.TCP && accepts(fd, e) })
}

// silentest returns as many of the connections as given: those that have been silent for
// longest.
func silentest(conns []connectionFile, n int) []connectionFile {
	if n <= 0 {
		return nil
	}
	silent := make(map[iptables.Connection]uint32, len(conns))
	for _, c := range conns {
		if info, err := unix.GetsockoptTCPInfo(c.fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			silent[c.Connection] = info.Last_data_recv // in milliseconds
		}
	}
	slices.SortStableFunc(conns, func(a, b connectionFile) int {
		return int(silent[b.Connection]) - int(silent[a.Connection])
	})
	return conns[:n]
}
