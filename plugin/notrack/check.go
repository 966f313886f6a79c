package notrack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// checkLabel is the first part of the name that a check asks for; the id of
// this load of the Corefile follows, then a zone that is served there:
//
//	trackless-check-0123456789abcdef.cluster.local.
//
// The handler of that load answers it and no other does, so an answer proves
// that our own listener is read and our own chain runs.
const checkLabel = "trackless-check-"

// checkTimeout bounds one check; it goes over lo.
const checkTimeout = 250 * time.Millisecond

// poolSize is the number of source ports for checks of each address and
// protocol. With SO_REUSEPORT the kernel spreads clients over the listening
// sockets of all instances on this node by a hash of the tuple: some ports lead
// to ours, others to another instance's, which refuses the check.
const poolSize = 16

// errNotOurs says that another instance answered; another port may lead to us.
var errNotOurs = errors.New("another instance answers")

// checker implements [iptables.Checker] with real queries.
type checker struct {
	config *configuration
	ports  map[netip.Addr]*pool
}

// pool holds the source ports for checks of one address.
type pool struct {
	udp []*net.UDPConn
	tcp []boundPort

	// The ports that led to us last; they most likely still do.
	lastUDP, lastTCP int
}

var _ iptables.Checker = (*checker)(nil)

func newChecker(c *configuration) *checker {
	return &checker{config: c, ports: map[netip.Addr]*pool{}}
}

// Reserve implements [iptables.Checker].
func (c *checker) Reserve(addrs []netip.Addr) ([]iptables.Check, error) {
	var checks []iptables.Check
	for _, a := range addrs {
		p := c.ports[a]
		if p == nil {
			p = &pool{}
			c.ports[a] = p
		}
		if err := p.fill(a); err != nil {
			return nil, fmt.Errorf("reserve a port for checks of %s: %w", a, err)
		}
		for i := range poolSize {
			checks = append(checks,
				iptables.Check{Endpoint: iptables.Endpoint{Addr: a, Port: udpPort(p.udp[i]), Proto: iptables.UDP}},
				iptables.Check{Endpoint: iptables.Endpoint{Addr: a, Port: p.tcp[i].port, Proto: iptables.TCP}},
			)
		}
	}
	return checks, nil
}

func (p *pool) fill(a netip.Addr) error {
	for len(p.udp) < poolSize {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		if err != nil {
			return err
		}
		p.udp = append(p.udp, conn)
	}
	for len(p.tcp) < poolSize {
		port, err := bindTCP(a)
		if err != nil {
			return fmt.Errorf("bind tcp: %w", err)
		}
		p.tcp = append(p.tcp, port)
	}
	return nil
}

// Check implements [iptables.Checker].
func (c *checker) Check(ctx context.Context, e iptables.Endpoint) error {
	p := c.ports[e.Addr]
	last, ask := &p.lastTCP, func(ctx context.Context, i int) error { return c.checkTCP(ctx, e, p.tcp[i].port) }
	if e.Proto == iptables.UDP {
		last, ask = &p.lastUDP, func(ctx context.Context, i int) error { return c.checkUDP(ctx, e, p.udp[i]) }
	}
	var err error
	for n := range poolSize {
		i := (*last + n) % poolSize
		attempt, cancel := context.WithTimeout(ctx, checkTimeout)
		err = ask(attempt, i)
		cancel()
		if err == nil {
			*last = i
			return nil
		}
		if !errors.Is(err, errNotOurs) {
			return err
		}
	}
	return err
}

func (c *checker) checkTCP(ctx context.Context, e iptables.Endpoint, source uint16) error {
	conn, err := dialTCP(ctx, e, source)
	if err != nil {
		return err
	}
	defer conn.Close()
	zone := c.config.zones[e]
	if zone == "" {
		return nil // not plain DNS: that it accepts connections has to do
	}
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	co, query := &dns.Conn{Conn: conn}, c.config.query(zone)
	if err := co.WriteMsg(query); err != nil {
		return err
	}
	answer, err := co.ReadMsg()
	if err != nil {
		return err
	}
	return c.config.isAnswer(query, answer)
}

func (c *checker) checkUDP(ctx context.Context, e iptables.Endpoint, conn *net.UDPConn) error {
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	query := c.config.query(c.config.zones[e])
	packed, err := query.Pack()
	if err != nil {
		return err
	}
	if _, err := conn.WriteToUDPAddrPort(packed, e.AddrPort()); err != nil {
		return err
	}
	buf := make([]byte, dns.MinMsgSize)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		answer := new(dns.Msg)
		// A late answer to an earlier check, or one from another endpoint,
		// is no answer to this one.
		if from.Port() != e.Port || answer.Unpack(buf[:n]) != nil || answer.Id != query.Id {
			continue
		}
		return c.config.isAnswer(query, answer)
	}
}

// dialTCP connects from a port that bindTCP holds. The connection is reset at
// its end, so that the next check can use the same addresses and ports at once.
func dialTCP(ctx context.Context, e iptables.Endpoint, source uint16) (net.Conn, error) {
	d := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(e.Addr, source)),
		Control: func(_, _ string, raw syscall.RawConn) error {
			return control(raw, func(fd int) error {
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

// Close implements [iptables.Checker].
func (c *checker) Close() error {
	var errs []error
	for a, p := range c.ports {
		for _, conn := range p.udp {
			errs = append(errs, conn.Close())
		}
		for _, port := range p.tcp {
			errs = append(errs, unix.Close(port.fd))
		}
		delete(c.ports, a)
	}
	return errors.Join(errs...)
}

// query builds the question of a check.
func (c *configuration) query(zone string) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(checkLabel+c.id+"."+strings.TrimPrefix(zone, ".")), dns.TypeTXT)
	m.RecursionDesired = false
	return m
}

// isAnswer tells an answer of this load's own handler from all others.
func (c *configuration) isAnswer(query, answer *dns.Msg) error {
	if answer.Rcode == dns.RcodeSuccess && len(answer.Answer) == 1 {
		if txt, ok := answer.Answer[0].(*dns.TXT); ok && len(txt.Txt) == 1 && txt.Txt[0] == c.id {
			return nil
		}
	}
	return fmt.Errorf("%w %s with %s", errNotOurs, query.Question[0].Name, dns.RcodeToString[answer.Rcode])
}

// isCheck reports whether a name is one that checks ask for, and whether this
// load's checks do.
func (c *configuration) isCheck(qname string) (check, own bool) {
	if len(qname) < len(checkLabel) || !strings.EqualFold(qname[:len(checkLabel)], checkLabel) {
		return false, false
	}
	id, _, _ := strings.Cut(qname[len(checkLabel):], ".")
	return true, strings.EqualFold(id, c.id)
}

// boundPort is a TCP port that is bound and nothing else, so that the kernel
// gives it to nobody while we connect from it time and again.
type boundPort struct {
	fd   int
	port uint16
}

func bindTCP(a netip.Addr) (boundPort, error) {
	domain, addr := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: v4(a)})
	if a.Is6() {
		domain, addr = unix.AF_INET6, &unix.SockaddrInet6{Addr: a.As16()}
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

func udpPort(conn *net.UDPConn) uint16 {
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

func control(raw syscall.RawConn, f func(fd int) error) error {
	var inner error
	err := raw.Control(func(fd uintptr) { inner = f(int(fd)) })
	return errors.Join(err, inner)
}

// v4 is the IPv4 address, or zeros for an IPv6 address.
func v4(a netip.Addr) [4]byte {
	if a.Is4() {
		return a.As4()
	}
	return [4]byte{}
}
