package cache

import (
	"context"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/sockets"
)

// A query may be caused by a query under way: a plugin looks up the target of an alias
// through the server, or the upstream is this server itself. Such a query must not wait
// for the query that waits for it.

// underWay is the key that marks the context of queries that are sent upstream.
type underWay struct{}

// comesOfAnother reports whether a plugin has made the query for a query under way.
func comesOfAnother(ctx context.Context) bool { return ctx.Value(underWay{}) != nil }

func markUnderWay(ctx context.Context) context.Context {
	return context.WithValue(ctx, underWay{}, true)
}

type check struct{}

// ServeCheck is [Cache.ServeDNS] for a query that this process answers itself, below the
// cache. No upstream is waited for, so nothing has to look after the query: a timer would
// wake an idle process although it was stopped in time.
func (c *Cache) ServeCheck(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	return c.ServeDNS(context.WithValue(ctx, check{}, true), w, r)
}

func isCheck(ctx context.Context) bool { return ctx.Value(check{}) != nil }

// comesOfUs reports whether the query came from a socket of this process. It checks all
// sockets of the process, and only for queries from this host.
func comesOfUs(w dns.ResponseWriter) bool {
	client, server := addrPort(w.RemoteAddr()), addrPort(w.LocalAddr())
	if a := client.Addr(); !a.IsLoopback() && a != server.Addr() && !server.Addr().IsUnspecified() {
		return false
	}
	return sockets.IsOwn(client, overTCP(w.RemoteAddr()))
}
