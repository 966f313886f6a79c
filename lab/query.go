package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// A Protocol carries DNS.
type Protocol string

// The protocols of RFC 1035 section 4.2.
const (
	UDP Protocol = "udp"
	TCP Protocol = "tcp"
)

// DefaultTimeout is what stub resolvers wait for a first answer (resolv.conf(5),
// timeout).
const DefaultTimeout = 5 * time.Second

// DNSPort is the port of RFC 1035 section 4.2.
const DNSPort = 53

// attemptTimeout bounds one attempt where several are made.
const attemptTimeout = time.Second

// Query sends one query from inside the namespace to port 53 of the server and
// returns the response. There is one attempt, which lasts until the context
// ends, at most 5 s.
func (ns *Namespace) Query(ctx context.Context, protocol Protocol, server netip.Addr, query *dns.Msg) (*dns.Msg, error) {
	wire, err := query.Pack()
	if err != nil {
		return nil, fmt.Errorf("pack the query: %w", err)
	}
	var fd int
	err = ns.Do(func() error {
		var err error
		fd, err = OpenSocket(protocol, server.Is6())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("query %s from %s: %w", server, ns.name, err)
	}
	wire, err = Exchange(ctx, fd, protocol, 0, netip.AddrPortFrom(server, DNSPort), wire, DefaultTimeout)
	if err != nil {
		return nil, fmt.Errorf("query %s from %s over %s: %w", server, ns.name, protocol, err)
	}
	response := new(dns.Msg)
	if err := response.Unpack(wire); err != nil {
		return nil, fmt.Errorf("unpack the response of %s: %w", server, err)
	}
	if response.Id != query.Id {
		return nil, fmt.Errorf("%s answered id %d for id %d", server, response.Id, query.Id)
	}
	return response, nil
}

// AwaitAnswer asks the target, from inside a namespace, until the given
// responder answers, the server ends, or the context does.
func (s *Server) AwaitAnswer(ctx context.Context, from *Namespace, protocol Protocol, target netip.Addr, want Responder) error {
	what := fmt.Sprintf("answering at %s over %s", target, protocol)
	return s.await(ctx, what, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
		defer cancel()
		name := HostName(hostCount - 1)
		query := new(dns.Msg).SetQuestion(name.Text, dns.TypeA)
		response, err := from.Query(ctx, protocol, target, query)
		if err != nil {
			return err
		}
		if got := Identify(response); got != want {
			return fmt.Errorf("%s answered at %s, not %s", got, target, want)
		}
		return nil
	})
}

// OpenSocket makes a non-blocking socket in the calling thread's network
// namespace.
func OpenSocket(protocol Protocol, ipv6 bool) (int, error) {
	family, kind := unix.AF_INET, unix.SOCK_DGRAM
	if ipv6 {
		family = unix.AF_INET6
	}
	if protocol == TCP {
		kind = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	return fd, nil
}

// Exchange sends the query to the server over the socket, from the given local
// port (0 lets the kernel choose), and returns what comes back with the same
// message id within the timeout. It closes the socket.
func Exchange(ctx context.Context, fd int, protocol Protocol, port uint16, server netip.AddrPort, query []byte, timeout time.Duration) ([]byte, error) {
	deadline := time.Now().Add(timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := Connect(fd, protocol, port, server); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	file := os.NewFile(uintptr(fd), string(protocol))
	defer func() { _ = file.Close() }()
	if err := file.SetDeadline(deadline); err != nil {
		return nil, err
	}
	// Cancelling the context ends the wait at once.
	stop := context.AfterFunc(ctx, func() { _ = file.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	response, err := roundTrip(file, protocol, query)
	switch {
	case err == nil:
		return response, nil
	case ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded):
		return nil, context.Cause(ctx)
	}
	var pathError *os.PathError
	if errors.As(err, &pathError) {
		err = pathError.Err // the path is no path but "udp" or "tcp"
	}
	return nil, err
}

// Connect begins to connect a non-blocking socket to the server, from the given local
// port (0 lets the kernel choose).
func Connect(fd int, protocol Protocol, port uint16, server netip.AddrPort) error {
	if port != 0 {
		if err := Bind(fd, port, protocol, server.Addr().Is6()); err != nil {
			return err
		}
	}
	if err := unix.Connect(fd, Sockaddr(server)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return os.NewSyscallError("connect", err)
	}
	return nil
}

// Bind gives the socket its local port, or where another socket has it, one
// that the kernel chooses.
func Bind(fd int, port uint16, protocol Protocol, ipv6 bool) error {
	if protocol == TCP {
		// A port whose last connection is in TIME-WAIT may be used again.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return os.NewSyscallError("setsockopt SO_REUSEADDR", err)
		}
	}
	local := netip.IPv4Unspecified()
	if ipv6 {
		local = netip.IPv6Unspecified()
	}
	err := unix.Bind(fd, Sockaddr(netip.AddrPortFrom(local, port)))
	if errors.Is(err, unix.EADDRINUSE) {
		err = unix.Bind(fd, Sockaddr(netip.AddrPortFrom(local, 0)))
	}
	if err != nil {
		return os.NewSyscallError("bind", err)
	}
	return nil
}

func roundTrip(file *os.File, protocol Protocol, query []byte) ([]byte, error) {
	if protocol == TCP {
		framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(query)), uint16(len(query)))
		if _, err := file.Write(append(framed, query...)); err != nil {
			return nil, err
		}
		var length [2]byte
		if _, err := io.ReadFull(file, length[:]); err != nil {
			return nil, err
		}
		response := make([]byte, binary.BigEndian.Uint16(length[:]))
		_, err := io.ReadFull(file, response)
		return response, err
	}
	if _, err := file.Write(query); err != nil {
		return nil, err
	}
	buffer := make([]byte, dns.MinMsgSize)
	for {
		size, err := file.Read(buffer)
		if err != nil {
			return nil, err
		}
		// The socket is connected, so a strange id can only be a late answer
		// to an earlier user of the port.
		if size >= 2 && buffer[0] == query[0] && buffer[1] == query[1] {
			return buffer[:size], nil
		}
	}
}

// Sockaddr is the address as the kernel takes it.
func Sockaddr(addr netip.AddrPort) unix.Sockaddr {
	if addr.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
}
