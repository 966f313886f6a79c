// Package probes answers kubelet's readiness and liveness probes.
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

// AskAll asks every listener for the name. A listener may refuse a name outside of its
// zones, but at least one must answer.
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

// arrivalTimeout bounds the time until a query over lo reaches the handler.
const arrivalTimeout = 250 * time.Millisecond

// errElsewhere means that another process got the query.
var errElsewhere = errors.New("no query reached this process: another process listens at the same address, or rules send queries elsewhere")

// askName asks one listener. It tries ports until the kernel gives the query to a socket
// of ours: with SO_REUSEPORT other processes may listen there, too.
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
	// Shortcuts answer hits before the plugins see them. They leave queries with the
	// option NSID alone (RFC 5001).
	query.SetEdns0(dns.DefaultMsgSize, false)
	query.IsEdns0().Option = append(query.IsEdns0().Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID})
	packed, err := query.Pack()
	if err != nil {
		return 0, err
	}
	arrived := seen.expect(sockets.Unmap(conn.LocalAddr().(*net.UDPAddr).AddrPort()))
	defer seen.forget(sockets.Unmap(conn.LocalAddr().(*net.UDPAddr).AddrPort()))
	if _, err := conn.WriteToUDPAddrPort(packed, server); err != nil {
		return 0, err
	}
	if arrived != nil {
		timeout := time.NewTimer(arrivalTimeout)
		defer timeout.Stop()
		select {
		case <-arrived:
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

// Questions are the questions of readiness probes under way, by source address. A nil
// *Questions watches for none.
type Questions struct {
	n   atomic.Int64 // len(out), for the fast path
	mu  sync.Mutex
	out map[netip.AddrPort]chan struct{}
}

// expect returns a channel that is closed when a query from the address arrives; nil for a
// nil *Questions.
func (q *Questions) expect(client netip.AddrPort) <-chan struct{} {
	if q == nil {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.out == nil {
		q.out = map[netip.AddrPort]chan struct{}{}
	}
	arrived := make(chan struct{})
	q.out[client] = arrived
	q.n.Store(int64(len(q.out)))
	return arrived
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

// Came records a query from an address of this node to the same address.
func (q *Questions) Came(client netip.AddrPort) {
	if q.n.Load() == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if arrived, ok := q.out[client]; ok {
		close(arrived)
		delete(q.out, client)
		q.n.Store(int64(len(q.out)))
	}
}
