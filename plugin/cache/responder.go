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
	"github.com/trackless-dns/trackless/plugin/cache/flight"
	"github.com/trackless-dns/trackless/plugin/cache/metrics"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// responder takes the response of the next plugin, stores it, and passes it
// on to the client if there is one.
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

	attempt *flight.Attempt // for others who wait for the response, or nil
	sent    sent
	back    bool // the upstream did not respond, but has responded again since

	local, remote net.Addr // addresses in place of the client's, if not nil

	replaceStale bool // take only what may replace a stale answer

	// A refresh goes on with the count of uses of the answer of kind of, which
	// was hits at the last use, at seen.
	refresh bool
	of      store.Kind
	hits    uint32
	seen    store.Time

	out flight.Outcome
	cut bool // a response did not fit its transport
	raw bool // there was a response as octets, which is not looked into
}

var errNilMessage = errors.New("cache: response message is nil")

// newResponder makes a responder without a client, for an attempt or for nobody
// else. It keeps nothing of q.
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
		w.hears()
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
	res = res.Copy() // it may be in a plugin's hands
	w.take(res, w.cache.failttl)
	if !w.edns && extended(res) {
		res.Rcode = dns.RcodeServerFailure
	}
	if client == nil {
		w.out.Private = res
		_ = w.settle(dns.RcodeSuccess, nil)
		return nil
	}
	// Before the client is written to, which may take its time.
	_ = w.settle(dns.RcodeSuccess, nil)
	return client.WriteMsg(res)
}

// hears notes a response. What a plugin of this process answers says nothing of the
// upstream: a file of hosts, or the check of our own address, which comes each second.
func (w *responder) hears() {
	if w.cache.hearsAll || w.asking.asked().From != "" {
		w.cache.flights.responses.hears(w.sent)
	}
}

// unanswered reports whether the query failed with code and err, and without a
// response.
func (w *responder) unanswered(code int, err error) bool {
	return !w.out.Answered && !w.raw && err != nil && code == dns.RcodeServerFailure
}

// settle gives the outcome to those who wait for it, once. It returns err, which
// then tells how many they are: only one of them reports it.
func (w *responder) settle(code int, err error) error {
	if w.attempt == nil {
		return err
	}
	out := w.out
	out.Code, out.Failed = code, w.unanswered(code, err)
	out.Back = out.Failed && w.back
	if n := w.attempt.Sharers - 1; out.Failed && n > 0 {
		err = fmt.Errorf("%w (for %d more queries too, which waited for the same answer)", err, n)
	}
	out.Err = err
	w.attempt.Settle(out)
	return err
}

// unspokenTTL bounds how long a failure is stored that no upstream spoke of. It
// keeps clients that repeat their query off an upstream that is away, and must not
// outlive its return.
const unspokenTTL = time.Second

// conclude settles a query to which there may have been no response, with code
// and err.
func (w *responder) conclude(ctx context.Context, r *dns.Msg, code int, err error) error {
	if w.unanswered(code, err) {
		if ctx.Err() != nil {
			return err // a client that went away says nothing about the name
		}
		// That TCP fails says nothing to the many who ask over UDP, and what was asked
		// before the upstream came back says nothing of now.
		if w.cache.failttl > 0 && !overTCP(w.RemoteAddr()) && !w.back {
			w.storeFailure(r)
		}
	}
	return w.settle(code, err)
}

type verdict int

const (
	ignore   verdict = iota // the stale answer stays
	keepOnly                // store it, but serve the stale answer
	replace                 // the stale answer is history
)

// judge tells what a response means for a stale answer. RFC 8767 section 4:
// NOERROR and NXDOMAIN are news, any other RCODE is a failed refresh.
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

// take stores a response and makes it what clients get to see: one TTL for
// all records, the one it is stored with; the client's spelling of the
// question; no OPT record, since that is between neighbours; AD for those who
// asked. A failure is stored for failttl.
func (w *responder) take(res *dns.Msg, failttl time.Duration) {
	c := w.cache
	now := c.now()
	t := classify.Type(res, now.UTC())
	life := c.lifetime(res, t, failttl)
	ttl := uint32(life / time.Second)
	storable := classify.Storable(res, t) && life > 0
	mine := classify.AnswersTo(res, w.question)
	forAll := forEveryNetwork(res)
	key, subnet := w.key, forOneSubnet(res)
	if bits := key.Bits(); bits&wire.Subnet != 0 {
		// What is for all clients is not for those of this network alone.
		key, subnet = key.AppendWith(nil, bits&^wire.Subnet), !forAll
	}
	for _, section := range []*[]dns.RR{&res.Answer, &res.Ns, &res.Extra} {
		*section = withTTL(*section, ttl)
	}
	w.out.Answered, w.out.TTL, w.out.Wildcard = true, ttl, w.wildcard()
	if storable && !mine {
		w.counters.Drops.Inc()
	}
	storable = storable && mine && !subnet
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

// lifetime is how long a response of the type is stored: its smallest TTL
// within the configured bounds, or failttl for failures. A denial
// lives no longer than the MINIMUM field of its SOA record says, whatever the
// TTL of that record is (RFC 2308 section 5).
func (c *Cache) lifetime(m *dns.Msg, t response.Type, failttl time.Duration) time.Duration {
	switch t {
	case response.NameError, response.NoData:
		ttl := dnsutil.MinimalTTLWithMaximum(m, t, c.nttl)
		for _, rr := range m.Ns {
			if soa, ok := rr.(*dns.SOA); ok {
				ttl = min(ttl, time.Duration(soa.Minttl)*time.Second)
			}
		}
		return min(max(ttl, c.minnttl), c.nttl)
	case response.ServerError:
		return failttl
	}
	return min(max(dnsutil.MinimalTTLWithMaximum(m, t, c.pttl), c.minpttl), c.pttl)
}

// store stores the entry unless its zone is excepted, and reports whether it is
// for everybody.
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

// storeFailure stores SERVFAIL for a query that was not answered at all, so
// that clients that repeat it do not all go upstream.
func (w *responder) storeFailure(r *dns.Msg) {
	failure := new(dns.Msg)
	failure.SetRcode(r, dns.RcodeServerFailure)
	w.take(failure, min(w.cache.failttl, unspokenTTL))
	w.out.Answered, w.out.Shared = false, false
}

// withTTL sets the TTL of the records and takes OPT records out.
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

// Write implements dns.ResponseWriter. A response in octets is not stored.
func (w *responder) Write(buf []byte) (int, error) {
	log.Warning("Caching called with Write: not caching reply")
	w.raw, w.out.Partial = true, true
	_ = w.settle(dns.RcodeSuccess, nil)
	if w.ResponseWriter == nil {
		return len(buf), nil
	}
	return w.ResponseWriter.Write(buf)
}

// The rest of dns.ResponseWriter must work without a client too.

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
