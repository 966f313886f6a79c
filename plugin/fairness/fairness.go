// Package fairness divides the queries that wait for an upstream among the clients, so that
// one that asks for very many names delays itself and nobody else.
//
// It is CoreDNS's side of package agent/fairness: it stands directly below the cache, gives
// each miss to it, and answers those that have to give way. Blocks with the directive notrack
// have it without a line; the directive fairness changes its settings, or adds it to a block
// without notrack.
package fairness

import (
	"context"
	"errors"
	"net/netip"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/coredns/coredns/plugin/pkg/transport"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/agent/admission"
	"github.com/trackless-dns/trackless/agent/fairness"
	"github.com/trackless-dns/trackless/agent/tuple"
)

const directive = "fairness"

var log = clog.NewWithPlugin(directive)

// Queries are those of this process. It is a variable, since caddy and Prometheus call
// plugins without a context.
var Queries = &admission.Queries{Offenders: fairness.Offenders{Log: log}}

// Gate is where the misses of a server block wait for their places.
type Gate struct {
	block *dnsserver.Config
	off   bool
	most  int  // misses under way, 0: as many as the memory limit allows
	owned bool // a handler of another plugin calls it
}

// Pass calls ask when the client has a place. A query that has to give way is answered.
func (g *Gate) Pass(ctx context.Context, w dns.ResponseWriter, r *dns.Msg, ask func(context.Context) (int, error)) (int, error) {
	if g.off {
		return ask(ctx)
	}
	client, _, proto := tuple.Of(w)
	known := client.Addr().IsValid()
	rcode, err := Queries.Pass(ctx, admission.Miss{
		Client: client.Addr(),
		Taken:  g.owned && proto == unix.IPPROTO_UDP && known,
		InTurn: g.inTurn() && proto == unix.IPPROTO_TCP && known,
	}, ask)
	var shed *fairness.Shed
	var notBegun *fairness.NotBegun
	switch {
	case errors.As(err, &notBegun):
		// The client has gone, or the cache asks anew. It sees that there was no response.
		return dns.RcodeServerFailure, plugin.Error(directive, err)
	case !errors.As(err, &shed):
		return rcode, err
	}
	over := &OverShare{shed}
	if g.block.Handler("cache") == nil {
		_ = w.WriteMsg(over.Reply(r)) // as CoreDNS does with errors of writes to clients
		return dns.RcodeSuccess, nil
	}
	return dns.RcodeServerFailure, plugin.Error(directive, over)
}

// inTurn reports whether the server answers the queries of a TCP connection one after the
// other: HTTP/2, of HTTPS and gRPC, has many at a time.
func (g *Gate) inTurn() bool {
	return g.block.Transport == transport.DNS || g.block.Transport == transport.TLS
}

// OverShare is the error of a query that had to give way. It says nothing about the upstream
// nor the name, so the cache keeps nothing of it, and gives the reply to that client alone.
type OverShare struct{ err error }

// Error implements error.
func (e *OverShare) Error() string { return e.err.Error() }

// Unwrap returns the error of package agent/fairness.
func (e *OverShare) Unwrap() error { return e.err }

// Reply is SERVFAIL, with the reason where the client understands it (RFC 8914).
func (*OverShare) Reply(r *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetRcode(r, dns.RcodeServerFailure)
	if opt := r.IsEdns0(); opt != nil {
		m.SetEdns0(opt.UDPSize(), opt.Do())
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_EDE{
			InfoCode:  dns.ExtendedErrorCodeOther,
			ExtraText: "too many queries of this client wait for an upstream",
		}}
	}
	return m
}

// handler calls the gate of a block without notrack.
type handler struct {
	Next plugin.Handler
	gate *Gate
}

// Name implements plugin.Handler.
func (*handler) Name() string { return directive }

// ServeDNS implements plugin.Handler.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	return h.gate.Pass(ctx, w, r, func(ctx context.Context) (int, error) {
		return plugin.NextOrFailure(directive, h.Next, ctx, w, r)
	})
}

// lookUp has the log and the metrics name a client: see [NameBy].
func lookUp(a netip.Addr) string {
	if by := nameBy.Load(); by != nil {
		return (*by)(a)
	}
	return ""
}
