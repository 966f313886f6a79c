package cache

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime/debug"
	"time"

	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/failures"
	"github.com/trackless-dns/trackless/plugin/cache/flight"
	"github.com/trackless-dns/trackless/plugin/cache/store"
)

// maxJitter bounds the delay of a refresh ahead of expiry.
const maxJitter = 500 * time.Millisecond

// maxRefreshes is how many refreshes may be under way at a time.
const maxRefreshes = 256

// serveStale answers with an expired answer, or with a fresh one if serve_stale verifies
// first (RFC 8767).
func (c *Cache) serveStale(ctx context.Context, q *query, now time.Time) (int, error) {
	switch {
	case c.verifyStale:
		if served, code, err := c.verify(ctx, q); served {
			return code, err
		}
	case c.mayRetry(q):
		// As in CoreDNS, the time of expiry counts as the last use.
		expired := c.engine.Store().Time(now) + store.Time(q.found.Left)*store.Time(time.Second)
		c.refresh(ctx, q, refreshOptions{stale: true, seen: expired})
	}
	q.counters.Stale.Inc()
	ttl := c.engine.ServeTTL(&q.found)
	if c.staleTTL > 0 {
		ttl = uint32(c.staleTTL / time.Second)
	}
	return c.reply(ctx, q, ttl)
}

// mayRetry reports whether a refresh may be tried: none has failed a moment ago.
func (c *Cache) mayRetry(q *query) bool { return c.staleRecheck == 0 || q.found.Retry }

// refreshEarly refreshes a popular answer before it expires, after a delay that differs
// from node to node.
func (c *Cache) refreshEarly(ctx context.Context, q *query, now time.Time) {
	left := time.Duration(q.found.Left) * time.Second
	c.refresh(ctx, q, refreshOptions{delay: c.jitter(min(left/4, maxJitter)), seen: c.engine.Store().Time(now)})
}

type refreshOptions struct {
	delay time.Duration
	stale bool       // the answer to be refreshed has expired
	seen  store.Time // the last use of that answer
}

// refresh asks for an answer again in the background, unless it is being asked for already,
// or too many refreshes are under way.
func (c *Cache) refresh(ctx context.Context, q *query, o refreshOptions) {
	b := c.refreshing(ctx, q)
	if b == nil {
		return
	}
	b.w.replaceStale = o.stale
	b.w.refresh, b.w.of, b.w.hits, b.w.seen = true, b.kind, q.found.Hits, o.seen
	q.counters.Prefetches.Inc()
	go b.runRefresh(o.delay)
}

// verify asks upstream before a stale answer is served. It reports false if the stale
// answer is to be served.
func (c *Cache) verify(ctx context.Context, q *query) (served bool, code int, err error) {
	if !c.mayRetry(q) {
		return false, 0, nil
	}
	if c.verifyTimeout > 0 {
		return c.verifyWithin(ctx, q, c.verifyTimeout)
	}
	if c.staleRecheck > 0 {
		// One query asks. The others get the stale answer meanwhile.
		a := c.flights.Lead(q.key, q.class())
		if a == nil {
			return false, 0, nil
		}
		return c.verifyNow(ctx, q, a)
	}
	// The error only says that the client has gone; verifyNow notices that itself.
	out, a, _ := c.coalesced(ctx, q, c.verifyAnew)
	if out == nil {
		return c.verifyNow(ctx, q, a)
	}
	if !out.Refreshed {
		return false, 0, nil
	}
	q.counters.Coalesced.Inc()
	code, err = c.deliver(ctx, q, out)
	return true, code, err
}

var errNotRefreshed = errors.New("cache: the stale answer was not refreshed")

// verifyNow asks for the client, which gets the response if it replaces the stale
// answer.
func (c *Cache) verifyNow(ctx context.Context, q *query, a *flight.Attempt) (served bool, code int, err error) {
	if a != nil {
		defer a.Settle(gone)
	}
	ctx = withMetadata(ctx)
	w := c.newResponder(ctx, q, a)
	w.ResponseWriter = q.w
	w.replaceStale = true
	code, err = c.askWhole(ctx, w, q.r)
	c.refreshed(w, q.found.Kind, err)
	if !w.out.Refreshed && ctx.Err() == nil {
		_ = w.settle(dns.RcodeServerFailure, errNotRefreshed)
	}
	return w.out.Refreshed, code, err
}

// verifyWithin asks in the background and waits for the response up to limit.
func (c *Cache) verifyWithin(ctx context.Context, q *query, limit time.Duration) (served bool, code int, err error) {
	b := c.refreshing(ctx, q)
	if b == nil {
		return false, 0, nil
	}
	b.w.replaceStale = true
	start := c.now()
	go b.runRefresh(0)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-b.done:
	case <-timer.C:
		return false, 0, nil
	}
	out := b.w.out
	if !out.Refreshed || !out.Answered {
		return false, 0, nil
	}
	if out.Shared {
		out.Private = nil // deliver the stored answer, with the TTL that is left
	}
	if !c.keepttl {
		out.TTL -= min(out.TTL, uint32(c.now().Sub(start)/time.Second))
	}
	code, err = c.deliver(ctx, q, &out)
	return true, code, err
}

// refreshed records whether a refresh of a stale answer of the kind succeeded, which ended
// with err. An error of the query itself says nothing about the upstream.
func (c *Cache) refreshed(w *responder, kind store.Kind, err error) {
	if c.staleRecheck == 0 || !w.replaceStale || failures.IsOwn(err) {
		return
	}
	var at store.Time
	if !w.out.Refreshed {
		at = c.engine.Store().Time(c.now().Add(c.staleRecheck))
	}
	c.engine.Store().Retry(w.key, kind, at)
}

// background is a query upstream without a client.
type background struct {
	cache *Cache
	ctx   context.Context
	w     *responder
	r     *dns.Msg
	kind  store.Kind
	done  chan struct{} // closed when run returns
}

// background prepares a query upstream that outlives the client's. The caller
// starts run in a goroutine.
func (c *Cache) background(ctx context.Context, q *query, a *flight.Attempt) *background {
	ctx = detach(ctx)
	w := c.newResponder(ctx, q, a)
	w.local, w.remote = q.w.LocalAddr(), q.w.RemoteAddr()
	return &background{cache: c, ctx: ctx, w: w, r: q.r.Copy(), kind: q.found.Kind, done: make(chan struct{})}
}

// refreshing prepares a refresh. It returns nil if the answer is being asked for already,
// or if too many refreshes are under way.
func (c *Cache) refreshing(ctx context.Context, q *query) *background {
	if !c.refreshes.tryAcquire() {
		return nil
	}
	a := c.flights.Lead(q.key, q.class())
	if a == nil {
		c.refreshes.release()
		return nil
	}
	b := c.background(ctx, q, a)
	b.w.remote = anyAddr(overTCP(q.w.RemoteAddr()))
	return b
}

// runRefresh refreshes after a delay.
func (b *background) runRefresh(delay time.Duration) {
	defer b.cache.refreshes.release()
	b.run(func() {
		if delay > 0 {
			time.Sleep(delay)
		}
		b.askWhole()
	})
}

// run calls ask. It recovers from a panic of a plugin, as the server does for queries
// with a client.
func (b *background) run(ask func()) {
	defer close(b.done)
	if a := b.w.attempt; a != nil {
		defer a.Settle(gone)
	}
	defer recovered(b.w.question.Name)
	ask()
}

// recovered is deferred in goroutines of our own, in which the server catches no panic.
func recovered(name string) {
	if r := recover(); r != nil {
		vars.Panic.Inc()
		log.Errorf("Recovered from panic in a query for %q in the background: %v\n%s", name, r, debug.Stack())
	}
}

func (b *background) askWhole() {
	_, err := b.cache.askWhole(b.ctx, b.w, b.r)
	b.cache.refreshed(b.w, b.kind, err)
	if b.w.replaceStale && !b.w.out.Refreshed {
		_ = b.w.settle(dns.RcodeServerFailure, errNotRefreshed)
	}
}

// askAnew asks in the background for all queries that wait for the answer.
func (c *Cache) askAnew(ctx context.Context, q *query, a *flight.Attempt) {
	b := c.background(ctx, q, a)
	go b.run(func() {
		code, err := c.ask(b.ctx, b.w, b.r)
		_ = b.w.conclude(b.ctx, b.r, code, err)
	})
}

// verifyAnew is askAnew for a stale answer.
func (c *Cache) verifyAnew(ctx context.Context, q *query, a *flight.Attempt) {
	b := c.background(ctx, q, a)
	b.w.replaceStale = true
	go b.run(b.askWhole)
}

// askWhole asks the next plugin over the client's transport, and again over TCP if the
// response is truncated: a truncated answer cannot refresh the stored one.
func (c *Cache) askWhole(ctx context.Context, w *responder, r *dns.Msg) (int, error) {
	code, err := c.ask(ctx, w, r)
	if w.cut && !w.out.Refreshed && !overTCP(w.RemoteAddr()) {
		w.cut = false
		w.remote = anyAddr(true)
		code, err = c.ask(ctx, w, r)
	}
	return code, err
}

// detach returns a context that outlives the client's query. It has a copy of the
// metadata.
func detach(ctx context.Context) context.Context {
	values := metadata.ValueFuncs(ctx)
	ctx = metadata.ContextWithMetadata(context.WithoutCancel(ctx))
	for label, f := range values {
		metadata.SetValueFunc(ctx, label, f)
	}
	return ctx
}

// anyAddr returns an empty address, from which plugins learn the transport.
func anyAddr(tcp bool) net.Addr {
	if tcp {
		return &net.TCPAddr{}
	}
	return &net.UDPAddr{}
}

// overTCP reports whether the client with this address uses a transport on which replies
// are not truncated.
func overTCP(addr net.Addr) bool {
	_, tcp := unwrap(addr).(*net.TCPAddr)
	return tcp
}

// addrPort returns the address as a value, or the zero value if it is neither UDP nor TCP.
func addrPort(addr net.Addr) netip.AddrPort {
	a, ok := unwrap(addr).(interface{ AddrPort() netip.AddrPort })
	if !ok {
		return netip.AddrPort{}
	}
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// unwrap returns the address inside of the wrappers that CoreDNS puts around it.
func unwrap(addr net.Addr) net.Addr {
	for {
		u, ok := addr.(interface{ Unwrap() net.Addr })
		if !ok {
			return addr
		}
		inner := u.Unwrap()
		if inner == nil {
			return addr
		}
		addr = inner
	}
}
