package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/plugin/pkg/dnsutil"
	"github.com/coredns/coredns/plugin/pkg/response"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/classify"
	"github.com/trackless-dns/trackless/plugin/cache/failures"
	"github.com/trackless-dns/trackless/plugin/cache/flight"
	"github.com/trackless-dns/trackless/plugin/cache/metrics"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/subnet"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// responder is the writer that the next plugin gets. It stores the response, and passes
// it to the client if there is one.
type responder struct {
	dns.ResponseWriter // the client's; nil in the background

	cache    *Cache
	counters *metrics.Counters
	key      wire.Key
	question dns.Question
	do, ad   bool
	edns     bool
	wildcard func() string
	asking   asking

	attempt *flight.Attempt // for queries that wait for the response, or nil
	sent    sent
	back    bool // the upstream did not respond, but has responded to others since

	// cutShort: the query was asked anew, and no time was left for the response.
	cutShort bool

	local, remote net.Addr // nil: the client's addresses

	replaceStale bool // take only a response that may replace a stale answer

	// A refresh keeps the uses of the answer with the kind of: their number is hits, the
	// last was at seen.
	refresh bool
	of      store.Kind
	hits    uint32
	seen    store.Time

	out flight.Outcome
	cut bool // a response was truncated
	raw bool // a response was written as bytes, which are not parsed
}

var errNilMessage = errors.New("cache: response message is nil")

// newResponder makes a responder without a client. The attempt a may be nil. The
// responder keeps no reference to q.
func (c *Cache) newResponder(ctx context.Context, q *query, a *flight.Attempt) *responder {
	return &responder{
		cache:    c,
		counters: q.counters,
		key:      bytes.Clone(q.key),
		question: q.r.Question[0],
		do:       q.do,
		ad:       q.ad,
		edns:     q.edns,
		attempt:  a,
		asking:   c.asking(ctx),
		wildcard: func() string {
			if f := metadata.ValueFunc(ctx, wildcardLabel); f != nil {
				return f()
			}
			return ""
		},
	}
}

// WriteMsg implements dns.ResponseWriter.
func (w *responder) WriteMsg(res *dns.Msg) error {
	w.out.Refreshed = false
	if res != nil {
		w.countResponse()
	}
	client := w.ResponseWriter
	if w.replaceStale {
		switch w.judge(res) {
		case ignore:
			return nil
		case keepOnly:
			client = nil
		case replace:
			w.out.Refreshed = true
		}
	}
	if res == nil {
		return errNilMessage
	}
	w.cut = w.cut || res.Truncated
	res = res.Copy() // a plugin may still use it
	w.take(res, w.cache.failttl)
	if !w.edns && extended(res) {
		res.Rcode = dns.RcodeServerFailure
	}
	if client == nil {
		w.out.Private = res
		_ = w.settle(dns.RcodeSuccess, nil)
		return nil
	}
	// Other queries get the response first, since a write to the client may block.
	_ = w.settle(dns.RcodeSuccess, nil)
	return client.WriteMsg(res)
}

// countResponse records a response of the upstream. Answers of plugins in this process do
// not count, such as those of a hosts file, or to our own checks.
func (w *responder) countResponse() {
	if w.cache.countsAll || w.asking.asked().From != "" {
		w.cache.flights.responses.responded(w.sent)
	}
}

// unanswered reports whether the query ended in a failure of the upstream, code and err,
// without a response.
func (w *responder) unanswered(code int, err error) bool {
	return !w.out.Answered && !w.raw && err != nil && code == dns.RcodeServerFailure && !failures.IsOwn(err)
}

// settle gives the outcome to the queries that wait for it, once. It returns err with the
// number of these queries, since only this query reports it.
func (w *responder) settle(code int, err error) error {
	if w.attempt == nil {
		return err
	}
	out := w.out
	out.Code, out.Failed = code, w.unanswered(code, err)
	out.Back = out.Failed && w.back
	if n := w.attempt.Sharers - 1; out.Failed && n > 0 {
		err = &sharedError{err, n}
	}
	if failures.IsOwn(err) {
		out.Failed, out.Partial = true, true // those that wait go on, and one of them asks
	}
	out.Err = err
	w.attempt.Settle(out)
	return err
}

// sharedError is a failure that others waited for.
type sharedError struct {
	err    error
	others int // queries that waited for the same answer
}

func (e *sharedError) Error() string {
	return fmt.Sprintf("%v (also for %d other queries, which waited for the same answer)", e.err, e.others)
}
func (e *sharedError) Unwrap() error { return e.err }

// noResponseTTL bounds how long a failure without a response is stored. It holds repeated
// queries back from an upstream that does not respond, and expires soon after the upstream
// has recovered.
const noResponseTTL = time.Second

// conclude settles a query that ended with code and err, with or without a response.
func (w *responder) conclude(ctx context.Context, r *dns.Msg, code int, err error) error {
	if w.unanswered(code, err) {
		if ctx.Err() != nil {
			return err // the client has gone
		}
		// A failure over TCP is not stored: most clients ask over UDP. Nor is one if the
		// upstream has recovered since, or if no time was left for the response.
		if w.cache.failttl > 0 && !overTCP(w.RemoteAddr()) && !w.back && !w.cutShort {
			w.storeFailure(r)
		}
	}
	return w.settle(code, err)
}

type verdict int

const (
	ignore   verdict = iota // the stale answer stays
	keepOnly                // store it, but serve the stale answer
	replace                 // store and serve it
)

// judge decides whether a response replaces a stale answer. NOERROR and NXDOMAIN do, any
// other RCODE is a failed refresh (RFC 8767 section 4).
func (w *responder) judge(res *dns.Msg) verdict {
	if res == nil {
		return ignore
	}
	if res.Truncated || !classify.AnswersTo(res, w.question) {
		w.cut = w.cut || res.Truncated
		return ignore
	}
	now := w.cache.now().UTC()
	if w.cache.preferPositive {
		if classify.Usable(res, now) {
			return replace
		}
		return keepOnly
	}
	switch classify.Type(res, now) {
	case response.OtherError, response.Meta, response.Update:
		return ignore
	}
	if res.Rcode != dns.RcodeSuccess && res.Rcode != dns.RcodeNameError {
		return ignore
	}
	return replace
}

// take stores a response and changes it to the reply for the client: all records get the
// stored TTL, the question gets the client's letter case, and the OPT record is removed,
// since it is hop by hop. AD stays if the client asked for it. A failure is stored for
// failttl.
func (w *responder) take(res *dns.Msg, failttl time.Duration) {
	c := w.cache
	now := c.now()
	t := classify.Type(res, now.UTC())
	life := c.lifetime(res, t, failttl)
	allowed := c.allowed(res, t)
	ttl := uint32(life / time.Second)
	storable := classify.Storable(res, t) && life > 0
	mine := classify.AnswersTo(res, w.question)
	forAll := subnet.ForAll(res)
	key, forOne := w.key, subnet.ForOne(res)
	if bits := key.Bits(); bits&wire.Subnet != 0 {
		// A response that is for all networks is stored for all.
		key, forOne = key.AppendWith(nil, bits&^wire.Subnet), !forAll
	}
	var mark uint8
	if mine {
		mark = w.understand(w.asking.ctx, res, key, life, allowed)
	}
	for _, section := range []*[]dns.RR{&res.Answer, &res.Ns, &res.Extra} {
		*section = withTTL(*section, ttl)
	}
	w.out.Answered, w.out.TTL, w.out.Wildcard = true, ttl, w.wildcard()
	if storable && !mine {
		w.counters.Drops.Inc()
	}
	storable = storable && mine && !forOne
	var a wire.Answer
	if storable {
		var err error
		a, err = wire.Pack(res)
		storable = err == nil
	}
	w.out.Answer = a
	w.out.Shared = storable && w.store(key, classify.Kind(t), &store.Entry{
		Stored:    c.engine.Store().Time(now),
		TTL:       ttl,
		Answer:    a,
		Answering: classify.Answers(res),
		ForAll:    forAll,
		Wildcard:  w.out.Wildcard,
		Mark:      mark,
		Refresh:   w.refresh,
		Of:        w.of,
		Hits:      w.hits,
		Seen:      w.seen,
	})
	if mine {
		res.Question[0].Name = w.question.Name
	}
	if !w.do && !w.ad {
		res.AuthenticatedData = false
	}
}

// lifetime returns how long a response of the type is stored: its smallest TTL within
// the configured bounds, or failttl for failures. A denial lives no longer than the
// MINIMUM field of its SOA record, whatever the TTL of that record (RFC 2308 section 5).
func (c *Cache) lifetime(m *dns.Msg, t response.Type, failttl time.Duration) time.Duration {
	switch t {
	case response.NameError, response.NoData:
		return min(max(c.allowed(m, t), c.minnttl), c.nttl)
	case response.ServerError:
		return failttl
	}
	return min(max(dnsutil.MinimalTTLWithMaximum(m, t, c.pttl), c.minpttl), c.pttl)
}

// allowed returns how long a denial may live, as the upstream says.
func (c *Cache) allowed(m *dns.Msg, t response.Type) time.Duration {
	ttl := dnsutil.MinimalTTLWithMaximum(m, t, c.nttl)
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			ttl = min(ttl, time.Duration(soa.Minttl)*time.Second)
		}
	}
	return ttl
}

// store stores the entry. It returns false if caching is disabled in the zone: other
// queries must not get the response then.
func (w *responder) store(key wire.Key, kind store.Kind, entry *store.Entry) bool {
	c := w.cache
	excepted := c.pexceptZones
	if kind == store.Negative {
		excepted = c.nexceptZones
	}
	if contains(excepted, key.Name()) {
		return false
	}
	w.counters.Stored(c.engine.Store(), c.engine.Put(key, kind, entry, w.asking.asked()))
	return true
}

// storeFailure stores SERVFAIL for a query without a response, so that clients that
// repeat the query do not all go upstream.
func (w *responder) storeFailure(r *dns.Msg) {
	failure := new(dns.Msg)
	failure.SetRcode(r, dns.RcodeServerFailure)
	w.take(failure, min(w.cache.failttl, noResponseTTL))
	w.out.Answered, w.out.Shared = false, false
}

// withTTL sets the TTL of the records and removes OPT records.
func withTTL(rrs []dns.RR, ttl uint32) []dns.RR {
	out := rrs[:0]
	for _, rr := range rrs {
		if rr.Header().Rrtype != dns.TypeOPT {
			rr.Header().Ttl = ttl
			out = append(out, rr)
		}
	}
	return out
}

// Write implements dns.ResponseWriter. A response in bytes is not stored.
func (w *responder) Write(buf []byte) (int, error) {
	log.Warning("Caching called with Write: not caching reply")
	w.raw, w.out.Partial = true, true
	_ = w.settle(dns.RcodeSuccess, nil)
	if w.ResponseWriter == nil {
		return len(buf), nil
	}
	return w.ResponseWriter.Write(buf)
}

// The other methods of dns.ResponseWriter must work without a client, too.

// RemoteAddr implements dns.ResponseWriter.
func (w *responder) RemoteAddr() net.Addr {
	if w.remote != nil {
		return w.remote
	}
	return w.ResponseWriter.RemoteAddr()
}

// LocalAddr implements dns.ResponseWriter.
func (w *responder) LocalAddr() net.Addr {
	if w.local != nil {
		return w.local
	}
	return w.ResponseWriter.LocalAddr()
}

// Close implements dns.ResponseWriter.
func (w *responder) Close() error {
	if w.ResponseWriter == nil {
		return nil
	}
	return w.ResponseWriter.Close()
}

// TsigStatus implements dns.ResponseWriter.
func (w *responder) TsigStatus() error {
	if w.ResponseWriter == nil {
		return nil
	}
	return w.ResponseWriter.TsigStatus()
}

// TsigTimersOnly implements dns.ResponseWriter.
func (w *responder) TsigTimersOnly(b bool) {
	if w.ResponseWriter != nil {
		w.ResponseWriter.TsigTimersOnly(b)
	}
}

// Hijack implements dns.ResponseWriter.
func (w *responder) Hijack() {
	if w.ResponseWriter != nil {
		w.ResponseWriter.Hijack()
	}
}
