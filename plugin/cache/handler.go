package cache

import (
	"context"
	"hash/maphash"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/cut"
	"github.com/trackless-dns/trackless/plugin/cache/direct"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/failures"
	"github.com/trackless-dns/trackless/plugin/cache/flight"
	"github.com/trackless-dns/trackless/plugin/cache/metrics"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/subnet"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// wildcardLabel is the metadata label under which CoreDNS's authoritative plugins publish
// the wildcard that an answer was made from.
const wildcardLabel = "zone/wildcard"

// query is a client's query and the answer that was found for it. It is reused.
type query struct {
	w        dns.ResponseWriter
	r        *dns.Msg
	key      wire.Key
	do, ad   bool
	edns     bool
	counters *metrics.Counters
	found    engine.Found

	keyBuf [wire.MaxKey]byte
	packed direct.Reply
}

var queries = sync.Pool{New: func() any { return new(query) }}

// ServeDNS implements plugin.Handler.
func (c *Cache) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := queries.Get().(*query)
	defer q.release()
	if !c.admit(q, r) {
		return c.passOn(ctx, w, r)
	}
	q.w, q.r, q.counters = w, r, c.Counters(serverOf(ctx))
	q.counters.Requests.Inc()
	if isTransfer(r) {
		q.counters.Misses.Inc()
		return c.passOn(ctx, w, r)
	}

	if zone := c.levels.Named(q.key.Name()); zone != nil && cut.OnWalk(q.key.Name(), zone) {
		q.counters.Search.Inc()
	}
	now := c.now()
	f := &q.found
	missed := !c.engine.Lookup(q.key, now, f) || c.isOver(f)
	if missed || f.Stale() && f.Kind == store.Negative {
		if served, code, err := c.deny(ctx, q, now); served {
			return code, err
		}
	}
	if missed {
		q.counters.Misses.Inc()
		code, err := c.miss(ctx, q)
		return c.failed(w, r, code, err)
	}
	q.counters.Found(f.Kind)
	if f.Stale() {
		return c.serveStale(ctx, q, now)
	}
	if f.Prefetch {
		c.refreshEarly(ctx, q, now)
	} else if a := c.announcer.Load(); a != nil {
		a.Hit(w.RemoteAddr(), w.LocalAddr(), q.key)
	}
	return c.reply(ctx, q, c.engine.ServeTTL(f))
}

// passOn passes a query to the next plugin that is not for the cache.
func (c *Cache) passOn(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if r.IsEdns0() == nil {
		w = plainWriter{w}
	}
	code, err := plugin.NextOrFailure(c.Name(), c.Next, ctx, w, r)
	return c.failed(w, r, code, err)
}

// failed returns what to return to the plugin above for a query that ended with code and err.
// It writes the reply that an error brings, and bounds the errors that are reported.
func (c *Cache) failed(w dns.ResponseWriter, r *dns.Msg, code int, err error) (int, error) {
	if m := failures.Reply(err, r); m != nil {
		_ = w.WriteMsg(m)
		return dns.RcodeSuccess, nil
	}
	return code, c.errors.Pass(err)
}

// plainWriter writes to a client without EDNS.
type plainWriter struct{ dns.ResponseWriter }

// WriteMsg implements dns.ResponseWriter.
func (w plainWriter) WriteMsg(m *dns.Msg) error {
	if m != nil && extended(m) {
		failure := *m
		failure.Rcode = dns.RcodeServerFailure
		m = &failure
	}
	return w.ResponseWriter.WriteMsg(m)
}

// extended reports whether the RCODE of a response needs EDNS (RFC 6891 section 6.1.3).
// A client without EDNS would get no response at all.
func extended(m *dns.Msg) bool { return m.Rcode > 0xf }

// isTransfer reports whether the query asks for a zone transfer, which is answered with
// many messages (RFC 5936, RFC 1995).
func isTransfer(r *dns.Msg) bool {
	return r.Question[0].Qtype == dns.TypeAXFR || r.Question[0].Qtype == dns.TypeIXFR
}

// release drops the references to the client's message and writer.
func (q *query) release() {
	q.w, q.r, q.counters = nil, nil, nil
	queries.Put(q)
}

// admit reports whether the query is for the cache, and reads its key. Messages with
// another opcode than QUERY are for other plugins.
func (c *Cache) admit(q *query, r *dns.Msg) bool {
	if c.engine == nil || r.Opcode != dns.OpcodeQuery || len(r.Question) != 1 {
		return false
	}
	var bits wire.Bits
	q.do, q.ad, q.edns = false, r.AuthenticatedData, false
	if opt := r.IsEdns0(); opt != nil {
		q.edns = true
		if q.do = opt.Do(); q.do {
			bits |= wire.DO
		}
		if len(opt.Option) > 0 {
			bits |= subnet.Bit(subnet.Of(r))
		}
	}
	if r.CheckingDisabled {
		bits |= wire.CD
	}
	if !r.RecursionDesired {
		bits |= wire.NoRD
	}
	question := &r.Question[0]
	key, err := wire.AppendKey(q.keyBuf[:0], question.Name, question.Qtype, question.Qclass, bits)
	if err != nil {
		return false
	}
	q.key = key
	return c.Caches(key.Name())
}

// reply answers the query with the answer that was found.
func (c *Cache) reply(ctx context.Context, q *query, ttl uint32) (int, error) {
	if b := q.packed.Pack(q.w, q.r, q.key, &q.found.Answer, ttl); b != nil {
		setWildcard(ctx, q.found.Wildcard)
		_, _ = q.w.Write(b)
		return dns.RcodeSuccess, nil
	}
	m, err := q.message(&q.found.Answer, ttl)
	if err != nil {
		// The answer is damaged. Ask for it again, which replaces it.
		log.Warningf("Cached answer for %q is unreadable: %v", q.r.Question[0].Name, err)
		return c.fetch(ctx, q, nil)
	}
	setWildcard(ctx, q.found.Wildcard)
	// In CoreDNS, a failed write to a client is no error.
	_ = q.w.WriteMsg(m)
	return dns.RcodeSuccess, nil
}

// message makes the reply to the query. AD is set only for clients that understand it
// (RFC 6840 section 5.8).
func (q *query) message(a *wire.Answer, ttl uint32) (*dns.Msg, error) {
	m, err := a.Message(q.r, ttl)
	if err == nil && !q.do && !q.ad {
		m.AuthenticatedData = false
	}
	return m, err
}

func setWildcard(ctx context.Context, name string) {
	if name != "" {
		metadata.SetValueFunc(ctx, wildcardLabel, func() string { return name })
	}
}

// miss answers the query from upstream. Of identical queries one goes upstream, and the
// others wait for its response.
func (c *Cache) miss(ctx context.Context, q *query) (int, error) {
	out, a, err := c.coalesced(ctx, q, c.askAnew)
	switch {
	case err != nil:
		return dns.RcodeServerFailure, err
	case out != nil:
		q.counters.Coalesced.Inc()
		if own := c.again(ctx, q, out.Back); own != nil {
			out = own
		}
		return c.deliver(ctx, q, out)
	case a != nil:
		defer a.Settle(gone)
	}
	if c.found(q.key, &q.found) {
		if a != nil {
			a.Settle(flight.Outcome{}) // the queries that wait find it too
		}
		return c.reply(ctx, q, c.engine.ServeTTL(&q.found))
	}
	return c.fetch(ctx, q, a)
}

// coalesced waits for the outcome of another query for the same answer. It returns an
// attempt instead if there is no such query, and neither if the query should ask for
// itself. If the wait takes too long, it calls askAnew, which asks in the background.
func (c *Cache) coalesced(ctx context.Context, q *query, askAnew func(context.Context, *query, *flight.Attempt)) (*flight.Outcome, *flight.Attempt, error) {
	if !c.coalesces(q.key) || comesOfAnother(ctx) {
		return nil, nil, nil
	}
	a, w := c.flights.Join(q.key, q.class())
	switch {
	case w == nil:
		return nil, a, nil
	case w.AmongFirst() && comesOfUs(q.w):
		w.Leave()
		return nil, nil, nil
	}
	defer c.waits(q.w.RemoteAddr())()
	out, err := w.Wait(ctx, func(a *flight.Attempt) { askAnew(ctx, q, a) })
	return out, nil, err
}

// coalesces reports whether queries with the key may share a response. They may not in
// zones where caching is disabled, nor if they are for the clients of one network.
func (c *Cache) coalesces(key wire.Key) bool {
	return c.coalesce && key.Bits()&wire.Subnet == 0 && !contains(c.pexceptZones, key.Name()) && !contains(c.nexceptZones, key.Name())
}

// class returns the way in which the query asks.
func (q *query) class() flight.Class {
	c := flight.Class{EDNS: q.edns, TCP: overTCP(q.w.RemoteAddr())}
	if opt := q.r.IsEdns0(); opt != nil && len(opt.Option) > 0 {
		c.Options = hashOptions(opt)
	}
	return c
}

var optionsSeed = maphash.MakeSeed()

// hashOptions returns a hash of the EDNS options, without the other fields of opt.
func hashOptions(opt *dns.OPT) uint64 {
	only := dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}, Option: opt.Option}
	packed := make([]byte, dns.Len(&only))
	n, err := dns.PackRR(&only, packed, 0, nil, false)
	if err != nil {
		return rand.Uint64() // equal to no other
	}
	return maphash.Bytes(optionsSeed, packed[:n])
}

// deliver answers the query with the outcome of another.
func (c *Cache) deliver(ctx context.Context, q *query, out *flight.Outcome) (int, error) {
	if !out.Answered {
		return out.Code, out.Err
	}
	m := out.Private
	if m == nil {
		var err error
		if m, err = q.message(&out.Answer, out.TTL); err != nil {
			return dns.RcodeServerFailure, err
		}
	}
	setWildcard(ctx, out.Wildcard)
	_ = q.w.WriteMsg(m)
	return dns.RcodeSuccess, nil
}

// fetch asks the next plugin. The response goes to the client, to the cache, and to the
// queries that wait for the attempt a, which may be nil.
func (c *Cache) fetch(ctx context.Context, q *query, a *flight.Attempt) (int, error) {
	ctx = withMetadata(ctx)
	w := c.newResponder(ctx, q, a)
	w.ResponseWriter = q.w
	code, err := c.ask(ctx, w, q.r)
	if w.unanswered(code, err) && ctx.Err() == nil {
		if c.found(q.key, &q.found) {
			return c.reply(ctx, q, c.engine.ServeTTL(&q.found))
		}
		if out := c.again(ctx, q, w.back); out != nil {
			return c.deliver(ctx, q, out)
		}
	}
	return code, w.conclude(ctx, q.r, code, err)
}

// againPatience is how long a query that has failed waits after it asks again.
const againPatience = time.Second

// again asks again in the background for a query that has failed, if back says that the
// upstream has responded to others since. It returns nil if there is no response soon.
func (c *Cache) again(ctx context.Context, q *query, back bool) *flight.Outcome {
	if !back {
		return nil
	}
	b := c.background(ctx, q, nil)
	go b.run(func() { _, _ = c.ask(b.ctx, b.w, b.r) })
	timer := time.NewTimer(againPatience)
	defer timer.Stop()
	select {
	case <-b.done:
		if b.w.out.Answered {
			return &b.w.out
		}
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil
}
