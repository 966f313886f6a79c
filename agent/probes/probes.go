// Package probes asks what kubelet's probes of readiness and liveness want to know.
package probes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/agent/sockets"
)

// AskAll asks every listener for the name. One in whose zones the name does not
// lie refuses it, which is as good; at least one has to answer.
func AskAll(ctx context.Context, name string, servers []netip.AddrPort, seen *Questions) error {
	if len(servers) == 0 {
		return errors.New("there is no listener for plain DNS over UDP")
	}
	answered := false
	for _, server := range servers {
		rcode, err := askName(ctx, name, server, seen)
		if err != nil {
			return fmt.Errorf("%s asked for %s: %w", server, name, err)
		}
		switch rcode {
		case dns.RcodeSuccess, dns.RcodeNameError:
			answered = true
		case dns.RcodeRefused:
		default:
			return fmt.Errorf("%s answers %s with %s", server, name, dns.RcodeToString[rcode])
		}
	}
	if !answered {
		return fmt.Errorf("no listener serves a zone in which %s lies", name)
	}
	return nil
}

// comeTimeout is how long a query may take to the handler over lo.
const comeTimeout = 250 * time.Millisecond

// errElsewhere says that another process took the query.
var errElsewhere = errors.New("no query came to this process; another one has the listen address too, or rules lead elsewhere")

// askName asks one listener, from one port after another until the kernel gives
// the query to a socket of ours: with SO_REUSEPORT others listen there too.
func askName(ctx context.Context, name string, server netip.AddrPort, seen *Questions) (rcode int, err error) {
	const ports = 32
	for range ports {
		rcode, err = askFrom(ctx, name, server, seen)
		if !errors.Is(err, errElsewhere) || ctx.Err() != nil {
			break
		}
	}
	if ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	return rcode, err
}

func askFrom(ctx context.Context, name string, server netip.AddrPort, seen *Questions) (int, error) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(server.Addr(), 0)))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	query := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	// An option keeps shortcuts that answer hits before the chain from it
	// (NSID, RFC 5001, may be left unanswered).
	query.SetEdns0(dns.DefaultMsgSize, false)
	query.IsEdns0().Option = append(query.IsEdns0().Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID})
	packed, err := query.Pack()
	if err != nil {
		return 0, err
	}
	came := seen.expect(sockets.Unmap(conn.LocalAddr().(*net.UDPAddr).AddrPort()))
	defer seen.forget(sockets.Unmap(conn.LocalAddr().(*net.UDPAddr).AddrPort()))
	if _, err := conn.WriteToUDPAddrPort(packed, server); err != nil {
		return 0, err
	}
	if came != nil {
		timeout := time.NewTimer(comeTimeout)
		defer timeout.Stop()
		select {
		case <-came:
		case <-timeout.C:
			return 0, errElsewhere
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetReadDeadline(deadline); err != nil {
			return 0, err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, dns.MaxMsgSize)
	for {
		n, _, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return 0, err
		}
		answer := new(dns.Msg)
		if answer.Unpack(buf[:n]) == nil && answer.Id == query.Id && answer.Response {
			return answer.Rcode, nil
		}
	}
}

// Questions are those of readiness probes that are under way, by the address
// that they come from. A nil one knows of none.
type Questions struct {
	n   atomic.Int64 // how many
	mu  sync.Mutex
	out map[netip.AddrPort]chan struct{}
}

// expect returns a channel that is closed when a query from the address has
// come; nil if nobody watches.
func (q *Questions) expect(client netip.AddrPort) <-chan struct{} {
	if q == nil {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.out == nil {
		q.out = map[netip.AddrPort]chan struct{}{}
	}
	came := make(chan struct{})
	q.out[client] = came
	q.n.Store(int64(len(q.out)))
	return came
}

func (q *Questions) forget(client netip.AddrPort) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.out, client)
	q.n.Store(int64(len(q.out)))
}

// Came notes a query from an address of this node to itself.
func (q *Questions) Came(client netip.AddrPort) {
	if q.n.Load() == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if came, ok := q.out[client]; ok {
		close(came)
		delete(q.out, client)
		q.n.Store(int64(len(q.out)))
	}
}
