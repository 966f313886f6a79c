package cache

import (
	"context"
	"net"
	"runtime/debug"
	"time"

	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// maxJitter bounds the delay of a refresh ahead of expiry.
const maxJitter = 500 * time.Millisecond

// serveStale answers with an expired answer, or with a fresh one if the
// configuration says to ask first (RFC 8767).
func (c *Cache) serveStale(ctx context.Context, q *query, now time.Time) (int, error) {
	switch {
	case c.verifyStale:
		if served, code, err := c.verify(ctx, q); served {
			return code, err
		}
	case c.mayRetry(q):
		// As CoreDNS has it, the last use that counts was when it expired.
		expired := c.engine.Store().Time(now) + store.Time(q.found.Left)*store.Time(time.Second)
		c.refresh(ctx, q, refreshOptions{stale: true, seen: expired})
	}
	q.counters.stale.Inc()
	ttl := c.engine.ServeTTL(&q.found)
	if c.staleTTL > 0 {
		ttl = uint32(c.staleTTL / time.Second)
	}
	return c.reply(ctx, q, ttl)
}

// mayRetry reports whether a refresh may be tried: not too soon after one that
// failed.
func (c *Cache) mayRetry(q *query) bool { return c.staleRecheck == 0 || q.found.Retry }

// refreshEarly refreshes a popular answer that is about to expire, after a
// delay that differs from node to node.
func (c *Cache) refreshEarly(ctx context.Context, q *query, now time.Time) {
	left := time.Duration(q.found.Left) * time.Second
	c.refresh(ctx, q, refreshOptions{delay: c.jitter(min(left/4, maxJitter)), seen: c.engine.Store().Time(now)})
}

type refreshOptions struct {
	delay time.Duration
	stale bool       // the answer to be refreshed has expired
	seen  store.Time // when it was last used
}

// refresh asks for an answer again in the background, unless that is under
// way or too much is.
func (c *Cache) refresh(ctx context.Context, q *query, o refreshOptions) {
	b := c.background(ctx, q)
	if b == nil {
		return
	}
	b.w.replaceStale = o.stale
	b.w.refresh, b.w.of, b.w.hits, b.w.seen = true, b.kind, q.found.Hits, o.seen
	q.counters.prefetches.Inc()
	go func() {
		defer b.end()
		if o.delay > 0 {
			time.Sleep(o.delay)
		}
		b.run()
	}()
}

// verify asks before a stale answer is served. It reports false if the stale
// answer has to do.
func (c *Cache) verify(ctx context.Context, q *query) (served bool, code int, err error) {
	if !c.mayRetry(q) {
		return false, 0, nil
	}
	if c.verifyTimeout > 0 {
		return c.verifyWithin(ctx, q, c.verifyTimeout)
	}
	if !c.coalesces(q.key) && c.staleRecheck == 0 {
		out := c.verifyNow(ctx, q)
		return out.refreshed, out.code, out.err
	}
	if c.staleRecheck > 0 {
		// One asks, the others take the stale answer meanwhile.
		fl := c.flights.lead(q.key)
		if fl == nil {
			return false, 0, nil
		}
		defer c.flights.finish(q.key, fl)
		fl.outcome = c.verifyNow(ctx, q)
		return fl.outcome.refreshed, fl.outcome.code, fl.outcome.err
	}
	fl, leader := c.flights.join(q.key)
	if fl == nil {
		return false, 0, nil
	}
	if leader {
		defer c.flights.finish(q.key, fl)
		fl.outcome = c.verifyNow(ctx, q)
		return fl.outcome.refreshed, fl.outcome.code, fl.outcome.err
	}
	out, ok := c.flights.wait(ctx, fl)
	if !ok || !out.shared || !out.refreshed || out.truncated {
		return false, 0, nil
	}
	q.counters.coalesced.Inc()
	code, err = c.deliver(ctx, q, out)
	return true, code, err
}

// verifyNow asks on behalf of the client, and lets the response through to it
// if it replaces the stale answer.
func (c *Cache) verifyNow(ctx context.Context, q *query) outcome {
	w := c.newResponder(ctx, q)
	w.ResponseWriter = q.w
	w.replaceStale = true
	w.out.size = q.size()
	w.out.code, w.out.err = c.askWhole(ctx, w, q.r)
	c.refreshed(w, q.found.Kind)
	return w.out
}

// verifyWithin asks in the background and waits for the response, but not
// longer than limit.
func (c *Cache) verifyWithin(ctx context.Context, q *query, limit time.Duration) (served bool, code int, err error) {
	b := c.background(ctx, q)
	if b == nil {
		return false, 0, nil
	}
	b.w.replaceStale = true
	start := c.now()
	go func() {
		defer b.end()
		b.run()
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-b.flight.done:
	case <-timer.C:
		return false, 0, nil
	}
	out := b.flight.outcome
	if !out.refreshed || !out.answered {
		return false, 0, nil
	}
	if !c.keepttl {
		out.ttl -= min(out.ttl, uint32(c.now().Sub(start)/time.Second))
	}
	code, err = c.deliver(ctx, q, &out)
	return true, code, err
}

// refreshed notes how a refresh of a stale answer of the kind ended.
func (c *Cache) refreshed(w *responder, kind store.Kind) {
	if c.staleRecheck == 0 || !w.replaceStale {
		return
	}
	var at store.Time
	if !w.out.refreshed {
		at = c.engine.Store().Time(c.now().Add(c.staleRecheck))
	}
	c.engine.Store().Retry(w.key, kind, at)
}

// background is a query upstream without a client.
type background struct {
	cache  *Cache
	ctx    context.Context
	w      *responder
	r      *dns.Msg
	key    wire.Key
	kind   store.Kind
	flight *flight
}

// background prepares a query upstream that outlives the client's. It returns
// nil if there is one under way for the same question, or too many are. The
// caller starts run and then end in a goroutine.
func (c *Cache) background(ctx context.Context, q *query) *background {
	if !c.refreshes.tryAcquire() {
		return nil
	}
	fl := c.flights.lead(q.key)
	if fl == nil {
		c.refreshes.release()
		return nil
	}
	ctx = detach(ctx)
	w := c.newResponder(ctx, q)
	w.local, w.remote = q.w.LocalAddr(), anyAddr(overTCP(q.w.RemoteAddr()))
	w.out.size = q.size()
	return &background{cache: c, ctx: ctx, w: w, r: q.r.Copy(), key: w.key, kind: q.found.Kind, flight: fl}
}

// run asks. A panic of a plugin is caught, as the server does for queries with
// a client.
func (b *background) run() {
	defer func() {
		if r := recover(); r != nil {
			vars.Panic.Inc()
			log.Errorf("Recovered from panic in a refresh of %q: %v\n%s", b.w.question.Name, r, debug.Stack())
		}
	}()
	b.w.out.code, b.w.out.err = b.cache.askWhole(b.ctx, b.w, b.r)
	b.cache.refreshed(b.w, b.kind)
	b.flight.outcome = b.w.out
}

func (b *background) end() {
	b.cache.flights.finish(b.key, b.flight)
	b.cache.refreshes.release()
}

// askWhole asks the next plugin over the client's transport, and over TCP if
// the response is cut off there: half an answer refreshes nothing.
func (c *Cache) askWhole(ctx context.Context, w *responder, r *dns.Msg) (int, error) {
	code, err := c.ask(ctx, w, r)
	if w.cut && !w.out.refreshed && !overTCP(w.RemoteAddr()) {
		w.cut = false
		w.remote = anyAddr(true)
		code, err = c.ask(ctx, w, r)
	}
	return code, err
}

// detach returns a context that is not cancelled when the client goes away and
// has metadata of its own, with the same values.
func detach(ctx context.Context) context.Context {
	values := metadata.ValueFuncs(ctx)
	ctx = metadata.ContextWithMetadata(context.WithoutCancel(ctx))
	for label, f := range values {
		metadata.SetValueFunc(ctx, label, f)
	}
	return ctx
}

// anyAddr is the address of nobody, by which plugins tell the transport.
func anyAddr(tcp bool) net.Addr {
	if tcp {
		return &net.TCPAddr{}
	}
	return &net.UDPAddr{}
}

// overTCP reports whether the client with this address came over a
// transport that does not cut replies off.
func overTCP(addr net.Addr) bool {
	for {
		u, ok := addr.(interface{ Unwrap() net.Addr })
		if !ok {
			break
		}
		inner := u.Unwrap()
		if inner == nil {
			break
		}
		addr = inner
	}
	_, tcp := addr.(*net.TCPAddr)
	return tcp
}
