package notrack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/caddy"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/iptables/reconcile"
)

var _ control.Prober = controlled{}

// Ready implements [control.Prober]. Detached by hand and dry-run are ready: the
// operator wants it so, and a rollout must not wait for what will not come. The
// keeper has seen the listeners answer before it came to a dry run.
func (c controlled) Ready(ctx context.Context, name string) (string, error) {
	if _, ok := dns.IsDomainName(name); !ok || name == "" {
		return "", fmt.Errorf("%q is not a domain name", name)
	}
	keeper, config := c.process.keeper.Load(), c.process.serving.Load()
	if keeper == nil || config == nil {
		if err := askAll(ctx, name, listeners(), nil); err != nil {
			return "", err
		}
		return fmt.Sprintf("%s is answered; %v", name, errNoBlock), nil
	}
	standing := keeper.Standing()
	switch {
	case standing.ByHand:
		return "detached by hand: DNS goes to the cluster until `trackless rules attach`", nil
	case standing.DryRun:
		return "dry-run: nothing is untracked", nil
	case standing.Reason != nil:
		return "", fmt.Errorf("the rules are not in force: %w", standing.Reason)
	case standing.State != reconcile.Attached:
		return "", fmt.Errorf("the rules are not in force: %s", standing.State)
	}
	for a, attached := range keeper.Status() {
		if !attached {
			return "", fmt.Errorf("DNS to %s is not untracked", a)
		}
	}
	if err := askAll(ctx, name, config.plain(), &c.process.asked); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s is answered, and DNS to %s is untracked", name, joined(config.plan.Addresses())), nil
}

// plain are the endpoints that speak plain DNS over UDP.
func (c *configuration) plain() []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range c.plan.Listen {
		if e.Proto == iptables.UDP && c.zones[e] != "" {
			out = append(out, e.AddrPort())
		}
	}
	return out
}

// listeners are the UDP sockets of the running servers, as a client of this
// node reaches them.
func listeners() []netip.AddrPort {
	var out []netip.AddrPort
	for _, i := range caddy.Instances() {
		for _, s := range i.Servers() {
			local, ok := s.LocalAddr().(*net.UDPAddr)
			if !ok {
				continue
			}
			ap := sockets.Unmap(local.AddrPort())
			switch ap.Addr() {
			case netip.IPv4Unspecified():
				ap = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), ap.Port())
			case netip.IPv6Unspecified():
				ap = netip.AddrPortFrom(netip.IPv6Loopback(), ap.Port())
			}
			if !slices.Contains(out, ap) {
				out = append(out, ap)
			}
		}
	}
	return out
}

func joined(addrs []netip.Addr) string {
	words := make([]string, 0, len(addrs))
	for _, a := range addrs {
		words = append(words, a.String())
	}
	return strings.Join(words, " ")
}

// askAll asks every listener for the name. One in whose zones the name does not
// lie refuses it, which is as good; at least one has to answer.
func askAll(ctx context.Context, name string, servers []netip.AddrPort, seen *questions) error {
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
func askName(ctx context.Context, name string, server netip.AddrPort, seen *questions) (rcode int, err error) {
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

func askFrom(ctx context.Context, name string, server netip.AddrPort, seen *questions) (int, error) {
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

// questions are those of readiness probes that are under way, by the address
// that they come from. A nil one knows of none.
type questions struct {
	n   atomic.Int64 // how many
	mu  sync.Mutex
	out map[netip.AddrPort]chan struct{}
}

// expect returns a channel that is closed when a query from the address has
// come; nil if nobody watches.
func (q *questions) expect(client netip.AddrPort) <-chan struct{} {
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

func (q *questions) forget(client netip.AddrPort) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.out, client)
	q.n.Store(int64(len(q.out)))
}

// came notes a query from an address of this node to itself.
func (q *questions) came(client netip.AddrPort) {
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
