package cache

import (
	"context"
	"sync"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// wildcardLabel is the metadata under which CoreDNS's authoritative plugins
// say which wildcard an answer was made from.
const wildcardLabel = "zone/wildcard"

// query is a client's query and what there is to answer it. It is used again
// for the next one.
type query struct {
	w        dns.ResponseWriter
	r        *dns.Msg
	key      wire.Key
	do, ad   bool
	subnet   bool // the client asks for the answer for a network
	counters *Counters
	found    engine.Found

	keyBuf [wire.MaxKey]byte
}

var queries = sync.Pool{New: func() any { return new(query) }}

// ServeDNS implements plugin.Handler.
func (c *Cache) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := queries.Get().(*query)
	defer q.release()
	if !c.admit(q, r) {
		return plugin.NextOrFailure(c.Name(), c.Next, ctx, w, r)
	}
	q.w, q.r, q.counters = w, r, c.Counters(serverOf(ctx))
	q.counters.requests.Inc()
	if q.subnet {
		// The answer is for that network (RFC 7871 section 7.3): the client
		// neither gets one from here nor leaves one.
		q.counters.misses.Inc()
		return plugin.NextOrFailure(c.Name(), c.Next, ctx, w, r)
	}

	now := c.now()
	f := &q.found
	if !c.engine.Lookup(q.key, now, f) {
		q.counters.misses.Inc()
		return c.miss(ctx, q)
	}
	q.counters.hits[kindIndex(f.Kind)].Inc()
	if f.Stale() {
		return c.serveStale(ctx, q, now)
	}
	if f.Prefetch {
		c.refreshEarly(ctx, q, now)
	}
	return c.reply(ctx, q, c.engine.ServeTTL(f))
}

// release lets go of the client's message and writer.
func (q *query) release() {
	q.w, q.r, q.counters = nil, nil, nil
	queries.Put(q)
}

// admit reports whether the query is for the cache, and reads its key.
// Anything but QUERY must reach the one it is meant for.
func (c *Cache) admit(q *query, r *dns.Msg) bool {
	if c.engine == nil || r.Opcode != dns.OpcodeQuery || len(r.Question) != 1 {
		return false
	}
	q.do, q.ad, q.subnet = false, r.AuthenticatedData, false
	if opt := r.IsEdns0(); opt != nil {
		q.do = opt.Do()
		q.subnet = len(opt.Option) > 0 && clientSubnet(r) != nil
	}
	question := &r.Question[0]
	key, err := wire.AppendKey(q.keyBuf[:0], question.Name, question.Qtype, question.Qclass, q.do, r.CheckingDisabled)
	if err != nil {
		return false
	}
	q.key = key
	return c.Caches(key.Name())
}

// reply answers with what was found.
func (c *Cache) reply(ctx context.Context, q *query, ttl uint32) (int, error) {
	m, err := q.message(&q.found.Answer, ttl)
	if err != nil {
		// Not what was put in: ask for it again, which replaces it.
		log.Warningf("Cached answer for %q is unreadable: %v", q.r.Question[0].Name, err)
		out := c.fetch(ctx, q)
		return out.code, out.err
	}
	setWildcard(ctx, q.found.Wildcard)
	// As everywhere in CoreDNS, a client that cannot be written to is no error.
	_ = q.w.WriteMsg(m)
	return dns.RcodeSuccess, nil
}

// message makes the reply to the query. AD is for those who understand it
// (RFC 6840 section 5.8).
func (q *query) message(a *wire.Answer, ttl uint32) (*dns.Msg, error) {
	m, err := a.Message(q.r, ttl)
	if err == nil && !q.do && !q.ad {
		m.AuthenticatedData = false
	}
	return m, err
}

// size is the largest reply the client takes, in octets.
func (q *query) size() int {
	state := request.Request{W: q.w, Req: q.r}
	return state.Size()
}

func setWildcard(ctx context.Context, name string) {
	if name != "" {
		metadata.SetValueFunc(ctx, wildcardLabel, func() string { return name })
	}
}

// miss has the query answered upstream. Of identical queries one goes
// upstream, and the others wait for its response.
func (c *Cache) miss(ctx context.Context, q *query) (int, error) {
	if c.coalesces(q.key) {
		for range maxRounds {
			fl, leader := c.flights.join(q.key)
			if fl == nil {
				break
			}
			if leader {
				return c.lead(ctx, q, fl)
			}
			out, ok := c.flights.wait(ctx, fl)
			if !ok {
				return dns.RcodeServerFailure, ctx.Err()
			}
			if out.shared && (!out.truncated || q.size() <= out.size) {
				q.counters.coalesced.Inc()
				return c.deliver(ctx, q, out)
			}
		}
	}
	out := c.fetch(ctx, q)
	return out.code, out.err
}

// coalesces reports whether queries with the key may share a response. Where a
// cache is disabled, the answers are perhaps not for everybody.
func (c *Cache) coalesces(key wire.Key) bool {
	return c.coalesce && !contains(c.pexceptZones, key.Name()) && !contains(c.nexceptZones, key.Name())
}

// lead has the query answered upstream for itself and for those who wait.
func (c *Cache) lead(ctx context.Context, q *query, fl *flight) (int, error) {
	defer c.flights.finish(q.key, fl)
	// The flight before this one may have landed since the query missed.
	if c.engine.Lookup(q.key, c.now(), &q.found) && !q.found.Stale() {
		return c.reply(ctx, q, c.engine.ServeTTL(&q.found))
	}
	fl.outcome = c.fetch(ctx, q)
	return fl.outcome.code, fl.outcome.err
}

// deliver answers the query with the response to another.
func (c *Cache) deliver(ctx context.Context, q *query, out *outcome) (int, error) {
	if !out.answered {
		return out.code, out.err
	}
	m, err := q.message(&out.answer, out.ttl)
	if err != nil {
		return dns.RcodeServerFailure, err
	}
	m.Truncated = out.truncated
	setWildcard(ctx, out.wildcard)
	_ = q.w.WriteMsg(m)
	return out.code, out.err
}

// fetch asks the next plugin, whose response goes to the client and to the
// cache.
func (c *Cache) fetch(ctx context.Context, q *query) outcome {
	w := c.newResponder(ctx, q)
	w.ResponseWriter = q.w
	w.out.size = q.size()
	code, err := c.ask(ctx, w, q.r)
	w.out.code, w.out.err = code, err
	if w.out.answered || w.raw {
		return w.out
	}
	// A client that went away says nothing about the name.
	w.out.shared = ctx.Err() == nil
	if err != nil && code == dns.RcodeServerFailure && w.out.shared && c.failttl > 0 {
		w.storeFailure(q.r)
	}
	return w.out
}

// ask passes the query on. It asks for the AD bit, which the cache keeps for
// clients that want it.
func (c *Cache) ask(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	r = r.Copy()
	r.AuthenticatedData = true
	return plugin.NextOrFailure(c.Name(), c.Next, ctx, w, r)
}
