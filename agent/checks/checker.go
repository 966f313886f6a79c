// Package checks finds out by real queries whether this process answers at its listen
// addresses, and whether these queries are tracked.
package checks

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/internal/reuseport"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile"
)

const (
	// checkTimeout bounds one check; it goes over lo. See busyTimeout.
	checkTimeout = 250 * time.Millisecond

	// poolSize is the number of source ports for checks of each address and
	// protocol, and leasePool that for lease probes. With SO_REUSEPORT the
	// kernel spreads clients over the listening sockets of all instances on
	// this node: some ports lead to one of ours, others to another of ours or to
	// another instance's. With a program each leads to another one, else by a
	// hash of the tuple.
	poolSize  = reuseport.Reached
	leasePool = reuseport.Reached
)

// Checker implements [reconcile.Checker] with real queries.
type Checker struct {
	Config
	pools  map[netip.Addr]*pool
	alarm  *alarm // nil before Reserve
	proofs proofs
	steady map[netip.Addr]steadiness // of the looks at the effect
}

// Config is what a Checker works with. Tracked, Mostly and Waiting may be nil.
type Config struct {
	Identity *Identity
	Listen   []iptables.Endpoint
	Zones    map[iptables.Endpoint]string // served at the endpoints, "" for those that do not speak plain DNS
	Sockets  int                          // listening sockets at each endpoint

	// Tracked reports whether a conntrack entry stands for a query, and in
	// which zone, and removes it.
	Tracked func(client, server netip.AddrPort) (zone uint16, found bool, err error)

	// Mostly returns how many queries of others were tracked although the address
	// is attached since then, if these are most of them; nil knows of none.
	Mostly func(a netip.Addr, since time.Time) uint64

	// Waiting reports whether a connection waits for our listener at a TCP endpoint to
	// accept it; nil knows of none.
	Waiting func(iptables.Endpoint) bool

	// Shared reports whether another process has sockets at an endpoint; nil: it may.
	Shared func(iptables.Endpoint) bool

	// Progress counts queries that were answered, Lost packets for which a socket had
	// no room, and Throttled tells whether a CPU limit was used up a moment ago.
	Progress  func() uint64
	Lost      func() uint64
	Throttled func() bool
}

// steadiness is the time for which an address was looked at without a pause, as it
// is while it is attached.
type steadiness struct{ since, last time.Time }

// looked notes a look and returns since when there was no pause.
func (c *Checker) looked(a netip.Addr, now time.Time) time.Time {
	s := c.steady[a]
	if now.Sub(s.last) > steadyPause {
		s.since = now
	}
	s.last = now
	if c.steady == nil {
		c.steady = map[netip.Addr]steadiness{}
	}
	c.steady[a] = s
	return s.since
}

// steadyPause is longer than the time between two looks on an idle node.
const steadyPause = 45 * time.Second

// pool holds the source ports for checks of one address.
type pool struct {
	udp    []*net.UDPConn
	tcp    []boundPort
	lease  []*net.UDPConn
	effect *net.UDPConn

	// Which ports led to which of our sockets, by endpoint.
	routes map[iptables.Endpoint]map[string]int
	last   int // the lease port that was answered last
}

var _ reconcile.Checker = (*Checker)(nil)

// New returns a checker that has reserved nothing yet.
func New(c Config) *Checker {
	return &Checker{Config: c, pools: map[netip.Addr]*pool{}}
}

// Reserve implements [reconcile.Checker].
func (c *Checker) Reserve(addrs []netip.Addr) ([]iptables.Check, []iptables.Lease, error) {
	var checks []iptables.Check
	var leases []iptables.Lease
	if c.alarm == nil {
		c.alarm = newAlarm()
	}
	for _, a := range addrs {
		p := c.pools[a]
		if p == nil {
			p = &pool{routes: map[iptables.Endpoint]map[string]int{}}
			c.pools[a] = p
		}
		if err := p.fill(a); err != nil {
			return nil, nil, fmt.Errorf("reserve a port for checks of %s: %w", a, err)
		}
		check := func(proto iptables.Proto, port uint16) {
			checks = append(checks, iptables.Check{Endpoint: iptables.Endpoint{Addr: a, Port: port, Proto: proto}})
		}
		for _, conn := range slices.Concat(p.udp, p.lease) {
			check(iptables.UDP, sockets.UDPPort(conn))
		}
		for _, b := range p.tcp {
			check(iptables.TCP, b.port)
		}
		if e, ok := c.leaseEndpoint(a); ok {
			for _, conn := range p.lease {
				leases = append(leases, iptables.Lease{Source: netip.AddrPortFrom(a, sockets.UDPPort(conn)), Listen: e.AddrPort()})
			}
		}
	}
	return checks, leases, nil
}

// fromPort opens what has a port that leads to the n-th socket, or any port if several of
// those are not free.
func fromPort[T any](n int, open func(port uint16) (T, error)) (T, error) {
	const first, count, tries = 32768, 28232, 8 // the ports of ip_local_port_range(7)
	for range tries {
		port := (first+rand.IntN(count))&^(reuseport.Reached-1) | n
		if got, err := open(uint16(port)); !errors.Is(err, unix.EADDRINUSE) {
			return got, err
		}
	}
	return open(0)
}

// listenAt opens a socket for checks.
func listenAt(at netip.AddrPort) (*net.UDPConn, error) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	if err := stamp(conn); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

func (p *pool) fill(a netip.Addr) error {
	listen := func(port uint16) (*net.UDPConn, error) { return listenAt(netip.AddrPortFrom(a, port)) }
	for len(p.udp) < poolSize {
		conn, err := fromPort(len(p.udp), listen)
		if err != nil {
			return err
		}
		p.udp = append(p.udp, conn)
	}
	for len(p.lease) < leasePool {
		conn, err := fromPort(len(p.lease), listen)
		if err != nil {
			return err
		}
		p.lease = append(p.lease, conn)
	}
	for len(p.tcp) < poolSize {
		port, err := fromPort(len(p.tcp), func(port uint16) (boundPort, error) { return bindTCP(netip.AddrPortFrom(a, port)) })
		if err != nil {
			return fmt.Errorf("bind tcp: %w", err)
		}
		p.tcp = append(p.tcp, port)
	}
	if p.effect == nil {
		conn, err := listen(0)
		if err != nil {
			return err
		}
		p.effect = conn
	}
	return nil
}

// leaseEndpoint is where lease probes of an address go: its first endpoint that
// speaks plain DNS over UDP.
func (c *Checker) leaseEndpoint(a netip.Addr) (iptables.Endpoint, bool) {
	for _, e := range c.Listen {
		if e.Addr == a && e.Proto == iptables.UDP && c.Zones[e] != "" {
			return e, true
		}
	}
	return iptables.Endpoint{}, false
}

// Check implements [reconcile.Checker]. Each of our sockets at the endpoint is
// asked through a port that is known to lead to it; when a port leads elsewhere
// than before, as after another instance came or went, all are tried again. That other
// one may hang: its sockets take queries all the same.
func (c *Checker) Check(ctx context.Context, e iptables.Endpoint) error {
	err := c.checkSockets(ctx, e)
	c.proofs.note(e, err == nil)
	return err
}

func (c *Checker) checkSockets(ctx context.Context, e iptables.Endpoint) error {
	p, silent := c.pools[e.Addr], false
	for socket, port := range p.routes[e] {
		got, err := c.ask(ctx, p, e, port)
		if err != nil && !c.leadsElsewhere(e, err) {
			return err
		}
		if err != nil || got != socket {
			silent = errors.Is(err, context.DeadlineExceeded)
			delete(p.routes, e)
			break
		}
	}
	if p.routes[e] != nil {
		return nil
	}
	routes, err := map[string]int{}, ErrNotOurs
	for port := 0; port < poolSize && len(routes) < c.Sockets; {
		next := 1
		if silent {
			next = poolSize - port // one after the other the leases would run out meanwhile
		}
		for i, answer := range c.askFrom(ctx, p, e, port, next) {
			switch {
			case answer.err == nil:
				routes[answer.socket] = port + i
			case ctx.Err() != nil || !c.leadsElsewhere(e, answer.err):
				return answer.err
			case !errors.Is(err, context.DeadlineExceeded):
				err = answer.err
			}
		}
		silent = errors.Is(err, context.DeadlineExceeded)
		port += next
	}
	// Of several sockets one may be another instance's that hangs, or ours.
	if len(routes) == 0 || len(routes) < c.Sockets && errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	p.routes[e] = routes
	return nil
}

// leadsElsewhere reports whether a port may lead to another instance, which answers or hangs.
func (c *Checker) leadsElsewhere(e iptables.Endpoint, err error) bool {
	return errors.Is(err, ErrNotOurs) || errors.Is(err, context.DeadlineExceeded) && (c.Shared == nil || c.Shared(e))
}

// reply is what came of a check.
type reply struct {
	socket string
	err    error
}

// askFrom sends checks from some ports at once.
func (c *Checker) askFrom(ctx context.Context, p *pool, e iptables.Endpoint, port, n int) []reply {
	out := make([]reply, n)
	var wg sync.WaitGroup
	for i := range out {
		wg.Go(func() { out[i].socket, out[i].err = c.ask(ctx, p, e, port+i) })
	}
	wg.Wait()
	return out
}

// ask sends one check from one port of the pool and returns which of our
// sockets it came to.
func (c *Checker) ask(ctx context.Context, p *pool, e iptables.Endpoint, port int) (socket string, err error) {
	ctx, cancel := c.patience(ctx)
	defer cancel()
	if e.Proto == iptables.UDP {
		socket, err = c.askUDP(ctx, e, p.udp[port])
	} else {
		socket, err = c.askTCP(ctx, e, p.tcp[port].port)
	}
	return socket, explain(ctx, err)
}

// errTracked says that a query left a conntrack entry although the rules are
// there.
var errTracked = errors.New("the query left a conntrack entry: rules at or before hook priority raw defeat ours (see `nft list ruleset`, `iptables -t raw -S`)")

// Effect implements [reconcile.Checker].
func (c *Checker) Effect(ctx context.Context, a netip.Addr) error {
	e, ok := c.leaseEndpoint(a)
	if !ok {
		return nil
	}
	since := c.looked(a, time.Now())
	err := c.askEffect(ctx, e)
	conn := c.pools[a].effect
	if c.Tracked == nil {
		return err
	}
	zone, tracked, trackedErr := c.Tracked(netip.AddrPortFrom(a, sockets.UDPPort(conn)), e.AddrPort())
	switch {
	case trackedErr != nil:
		return errors.Join(err, trackedErr)
	case tracked && zone != 0:
		return fmt.Errorf("%w, in zone %d: whatever sets a zone undoes NOTRACK", errTracked, zone)
	case tracked:
		return errTracked
	case err != nil:
		return fmt.Errorf("a query from this node to %s was not answered: %w", e, err)
	case c.Mostly == nil:
		return nil
	}
	if n := c.Mostly(a, since); n > 0 {
		return fmt.Errorf("what this node asks leaves no entry, but %d others that asked lately did: rules that meet pods alone track their queries", n)
	}
	return nil
}

// effectPorts is from how many ports a query for the effect is sent until one is answered:
// some lead to another instance, which may hang.
const effectPorts = 8

// askEffect sends the query for the effect.
func (c *Checker) askEffect(ctx context.Context, e iptables.Endpoint) (err error) {
	p := c.pools[e.Addr]
	for n := range effectPorts {
		if n > 0 {
			next, openErr := listenAt(netip.AddrPortFrom(e.Addr, 0))
			if openErr != nil {
				return errors.Join(err, openErr)
			}
			_ = p.effect.Close()
			p.effect = next
		}
		patient, cancel := c.patience(ctx)
		_, err = c.askUDP(patient, e, p.effect)
		err = explain(patient, err)
		cancel()
		if errors.Is(err, ErrNotOurs) {
			// Of several instances on this node any may answer; what matters is
			// that the query was not tracked.
			return nil
		}
		if ctx.Err() != nil || !c.leadsElsewhere(e, err) {
			return err
		}
	}
	return err
}

func (c *Checker) askTCP(ctx context.Context, e iptables.Endpoint, source uint16) (string, error) {
	conn, err := dialTCP(ctx, e, source)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	zone := c.Zones[e]
	if zone == "" {
		return "", nil // not plain DNS: that it accepts connections has to do
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(longAgo) })()
	co, query := &dns.Conn{Conn: conn}, c.Identity.Query(CheckLabel, zone)
	if err := co.WriteMsg(query); err != nil {
		return "", err
	}
	answer, err := co.ReadMsg()
	if err != nil {
		return "", err
	}
	return c.Identity.AnsweredBy(query, answer)
}

// dialTCP connects from a port that bindTCP holds. The connection is reset at
// its end, so that the next check can use the same addresses and ports at once.
func dialTCP(ctx context.Context, e iptables.Endpoint, source uint16) (net.Conn, error) {
	d := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(e.Addr, source)),
		Control: func(_, _ string, raw syscall.RawConn) error {
			return sockets.Control(raw, func(fd int) error {
				return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			})
		},
	}
	conn, err := d.DialContext(ctx, "tcp", e.AddrPort().String())
	if err != nil {
		return nil, err
	}
	if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// Close implements [reconcile.Checker].
func (c *Checker) Close() error {
	var errs []error
	for a, p := range c.pools {
		for _, conn := range slices.Concat(p.udp, p.lease) {
			errs = append(errs, conn.Close())
		}
		if p.effect != nil {
			errs = append(errs, p.effect.Close())
		}
		for _, port := range p.tcp {
			errs = append(errs, unix.Close(port.fd))
		}
		delete(c.pools, a)
	}
	if c.alarm != nil {
		errs = append(errs, c.alarm.close())
		c.alarm = nil
	}
	return errors.Join(errs...)
}

// boundPort is a TCP port that is bound and nothing else, so that the kernel
// gives it to nobody while we connect from it time and again.
type boundPort struct {
	fd   int
	port uint16
}

func bindTCP(at netip.AddrPort) (boundPort, error) {
	domain, addr := unix.AF_INET6, unix.Sockaddr(nil)
	if a := at.Addr(); a.Is4() {
		domain, addr = unix.AF_INET, &unix.SockaddrInet4{Addr: a.As4(), Port: int(at.Port())}
	} else {
		addr = &unix.SockaddrInet6{Addr: a.As16(), Port: int(at.Port())}
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return boundPort{}, err
	}
	port, err := func() (uint16, error) {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return 0, err
		}
		if err := unix.Bind(fd, addr); err != nil {
			return 0, err
		}
		local, err := unix.Getsockname(fd)
		if err != nil {
			return 0, err
		}
		if l, ok := local.(*unix.SockaddrInet6); ok {
			return uint16(l.Port), nil
		}
		return uint16(local.(*unix.SockaddrInet4).Port), nil
	}()
	if err != nil {
		return boundPort{}, errors.Join(err, unix.Close(fd))
	}
	return boundPort{fd: fd, port: port}, nil
}
