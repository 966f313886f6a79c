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

// checker implements [iptables.Checker] with real queries.
type checker struct {
	config *configuration
	udp    map[netip.Addr]*net.UDPConn
	tcp    map[netip.Addr]boundPort
}

var _ iptables.Checker = (*checker)(nil)

func newChecker(c *configuration) *checker {
	return &checker{config: c, udp: map[netip.Addr]*net.UDPConn{}, tcp: map[netip.Addr]boundPort{}}
}

// Reserve implements [iptables.Checker].
func (c *checker) Reserve(addrs []netip.Addr) ([]iptables.Check, error) {
	var checks []iptables.Check
	for _, a := range addrs {
		if c.udp[a] == nil {
			conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
			if err != nil {
				return nil, fmt.Errorf("reserve a port for checks: %w", err)
			}
			c.udp[a] = conn
		}
		if _, ok := c.tcp[a]; !ok {
			p, err := bindTCP(a)
			if err != nil {
				return nil, fmt.Errorf("reserve a port for checks: bind tcp %s: %w", a, err)
			}
			c.tcp[a] = p
		}
		checks = append(checks,
			iptables.Check{Endpoint: iptables.Endpoint{Addr: a, Port: udpPort(c.udp[a]), Proto: iptables.UDP}},
			iptables.Check{Endpoint: iptables.Endpoint{Addr: a, Port: c.tcp[a].port, Proto: iptables.TCP}},
		)
	}
	return checks, nil
}

// Check implements [iptables.Checker].
func (c *checker) Check(ctx context.Context, e iptables.Endpoint) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	zone := c.config.zones[e]
	if e.Proto == iptables.UDP {
		return c.checkUDP(ctx, e, c.config.query(zone))
	}
	conn, err := c.dialTCP(ctx, e)
	if err != nil {
		return err
	}
	defer conn.Close()
	if zone == "" {
		return nil // not plain DNS: that it accepts connections has to do
	}
	deadline, _ := ctx.Deadline()
	co := &dns.Conn{Conn: conn}
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	query := c.config.query(zone)
	if err := co.WriteMsg(query); err != nil {
		return err
	}
	answer, err := co.ReadMsg()
	if err != nil {
		return err
	}
	return c.config.isAnswer(query, answer)
}

func (c *checker) checkUDP(ctx context.Context, e iptables.Endpoint, query *dns.Msg) error {
	conn := c.udp[e.Addr]
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
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

// dialTCP connects from the reserved port. The connection is reset at its end,
// so that the next check can use the same addresses and ports at once.
func (c *checker) dialTCP(ctx context.Context, e iptables.Endpoint) (net.Conn, error) {
	d := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(e.Addr, c.tcp[e.Addr].port)),
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
	for a, conn := range c.udp {
		errs = append(errs, conn.Close())
		delete(c.udp, a)
	}
	for a, p := range c.tcp {
		errs = append(errs, unix.Close(p.fd))
		delete(c.tcp, a)
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
	return fmt.Errorf("someone else answered %s with %s", query.Question[0].Name, dns.RcodeToString[answer.Rcode])
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
