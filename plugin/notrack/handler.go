package notrack

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/agent/admission"
	"github.com/trackless-dns/trackless/agent/checks"
	"github.com/trackless-dns/trackless/agent/health"
	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/agent/tuple"
	"github.com/trackless-dns/trackless/internal/loglimit"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/plugin/fairness"
)

// ServeDNS implements plugin.Handler.
func (n *NoTrack) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	w = tuple.WithDestination(w)
	client, server, proto := tuple.Of(w)
	if len(r.Question) == 1 && client.Addr() == server.Addr() {
		// This node asks itself: it may be a check of ours. Checks end here, so
		// that they are in neither metrics nor log.
		if p, ok := n.config.identity.ProbeOf(r.Question[0].Name); ok {
			return n.answerProbe(ctx, w, r, p)
		}
		n.config.agent.Asked.Came(client)
	}
	if n.config.agent.Health.IsOurs(client) {
		return dns.RcodeSuccess, nil // no answer: we asked kube-dns
	}
	accountant := &n.config.agent.Accountant
	accountant.Begin(proto)
	n.config.agent.Tally.Clients.Add(client.Addr())
	defer accountant.End()
	switch proto {
	case unix.IPPROTO_TCP:
		return n.serveTCP(ctx, w, r, client, server)
	case unix.IPPROTO_UDP:
		if !n.config.agent.Queries.Take(client.Addr()) {
			return dns.RcodeSuccess, nil // no answer
		}
		defer n.config.agent.Queries.Done(client.Addr())
	}
	query := accountant.Note(client, server, proto)
	defer query.Response()
	return n.pass(ctx, w, r)
}

// pass passes a query on. What plugin.NextOrFailure does besides is for plugins above
// that note which one has answered, or trace: there are none.
func (n *NoTrack) pass(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if n.Next == nil {
		return plugin.NextOrFailure(n.Name(), nil, ctx, w, r)
	}
	return n.Next.ServeDNS(ctx, w, r)
}

// limited bounds log lines that clients can cause.
var limited = loglimit.New(log)

// serveTCP passes a query on. It closes the connection after the answer if another server
// is to answer the client's next query.
func (n *NoTrack) serveTCP(ctx context.Context, w dns.ResponseWriter, r *dns.Msg, client, server netip.AddrPort) (int, error) {
	n.config.agent.Queries.Asks(client.Addr())
	query := n.config.agent.Accountant.Note(client, server, unix.IPPROTO_TCP)
	defer query.Response()
	tcp := sockets.NewWriter(w, client, server, n.block.WriteTimeout, limited)
	serve := func() (int, error) {
		rcode, err := n.pass(ctx, tcp, r)
		answerError(tcp, r, rcode)
		return dns.RcodeSuccess, err
	}
	last := n.config.leaving.Load() || n.config.agent.Released()
	// Endpoints without a zone are HTTPS, gRPC or TLS: the listener closes those
	// connections.
	if last && n.config.zones[iptables.Endpoint{Addr: server.Addr(), Port: server.Port(), Proto: iptables.TCP}] != "" {
		return tcp.ServeLast(serve)
	}
	return serve()
}

// waiter is a plugin in which queries wait for the answer to another one: `cache`.
type waiter interface {
	OnWait(waits func(client net.Addr) (end func()))
}

// followWaits makes the caches of a load report which queries wait.
func followWaits(config *configuration, u *admission.Queries) {
	for _, n := range config.everyHandler() {
		if cache, ok := n.block.Handler("cache").(waiter); ok {
			cache.OnWait(func(client net.Addr) (end func()) {
				// Queries over TCP are not counted.
				if udp, ok := client.(*net.UDPAddr); ok {
					return u.Wait(udp.AddrPort().Addr().Unmap())
				}
				return func() {}
			})
		}
	}
}

// answerProbe answers a check or lease probe of this load. It goes through `cache` if the
// block has one, so that it notices a cache that hangs.
func (n *NoTrack) answerProbe(ctx context.Context, w dns.ResponseWriter, r *dns.Msg, p checks.Probe) (int, error) {
	switch {
	case p.Lease && (!p.Own || p.Void):
		return dns.RcodeSuccess, nil // an answer would renew the lease of another instance, or one that is ended
	case p.Lease && leaseDenied(w):
		return dns.RcodeSuccess, nil
	case !p.Own:
		return dns.RcodeSuccess, w.WriteMsg(new(dns.Msg).SetRcode(r, dns.RcodeRefused))
	}
	cache := n.block.Handler("cache")
	if cache == nil {
		return answerHere(ctx, w, r, n.config)
	}
	serve := cache.ServeDNS
	if c, ok := cache.(checked); ok {
		serve = c.ServeCheck
	}
	_, err := serve(ctx, w, r)
	return dns.RcodeSuccess, err
}

// leaseDenied reports whether no lease is to be renewed at the server of a probe.
func leaseDenied(w dns.ResponseWriter) bool {
	denied := denyLeases.Load()
	if denied == nil {
		return false
	}
	_, server, _ := tuple.Of(w)
	return (*denied)(server)
}

// checked is a cache that serves our checks with less effort.
type checked interface {
	ServeCheck(context.Context, dns.ResponseWriter, *dns.Msg) (int, error)
}

func answerHere(ctx context.Context, w dns.ResponseWriter, r *dns.Msg, c *configuration) (int, error) {
	if s, ok := ctx.Value(dnsserver.Key{}).(*dnsserver.Server); ok {
		_, _, proto := tuple.Of(w)
		if _, known := c.servers.LoadOrStore(serving{s, proto}, struct{}{}); !known {
			c.readyForQueries()
		}
	}
	return dns.RcodeSuccess, w.WriteMsg(c.identity.Answer(r, fmt.Sprintf("%p", ctx.Value(dnsserver.Key{}))))
}

// serving is a server over a protocol. It sets up its sockets for TCP and for UDP at different
// times, and a fast path opens more of these just before the server reads from its own.
type serving struct {
	server *dnsserver.Server
	proto  uint8
}

// readyForQueries prepares the listeners. A check has come to a server for the first time over a
// protocol: it has set up its sockets, and clients ask it soon.
func (c *configuration) readyForQueries() {
	if err := c.agent.MakeRoom(c.plan.Listen); err != nil {
		log.Debugf("the buffers of the listeners stay as small as net.core.rmem_max, so that bursts of queries may be lost: %v; give the container NET_ADMIN", err)
	}
	if err := c.agent.Guard(c.plan.Listen); err != nil {
		log.Warningf("one client may open any number of TCP connections: %v", err)
	}
}

// checkpoint is the handler directly below `cache`. It answers checks that have passed the
// cache, and passes misses on.
type checkpoint struct {
	Next   plugin.Handler
	config *configuration
	block  *dnsserver.Config
	gate   *fairness.Gate
}

// Name implements plugin.Handler.
func (*checkpoint) Name() string { return directive + "_checkpoint" }

// ServeDNS implements plugin.Handler.
func (p *checkpoint) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if len(r.Question) == 1 {
		client, server, _ := tuple.Of(w)
		if probe, ok := p.config.identity.ProbeOf(r.Question[0].Name); ok && probe.Own && client.Addr() == server.Addr() {
			return answerHere(ctx, w, r, p.config)
		}
	}
	if t := &p.config.agent.Tally; t.Running() && len(r.Question) == 1 {
		client, _, _ := tuple.Of(w)
		t.Missed(client.Addr(), r.Question[0].Name)
	}
	return p.gate.Pass(ctx, w, r, func(ctx context.Context) (int, error) { return p.ask(ctx, w, r) })
}

// ask passes a miss on.
func (p *checkpoint) ask(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	state := request.Request{W: w}
	return p.config.agent.Health.Serve(ctx, health.Query{
		Block: serverBlock{p.block}, W: w, R: r, TCP: state.Proto() == "tcp",
		Asked: func(service netip.AddrPort) {
			metadata.SetValueFunc(ctx, "upstream/address", service.String)
		},
		Pass: func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			return plugin.NextOrFailure(directive, p.Next, ctx, w, r)
		},
	})
}

// answerError writes the RCODE of a query that no plugin has answered. The server would
// write it without a deadline.
func answerError(w dns.ResponseWriter, r *dns.Msg, rcode int) {
	if plugin.ClientWrite(rcode) {
		return
	}
	answer := new(dns.Msg).SetRcode(r, rcode)
	state := request.Request{W: w, Req: r}
	state.SizeAndDo(answer)
	_ = w.WriteMsg(answer)
}
