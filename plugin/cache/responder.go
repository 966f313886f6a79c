package cache

import (
	"bytes"
	"context"
	"errors"
	"net"
	"time"

	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/plugin/pkg/response"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// responder takes the response of the next plugin, stores it, and passes it
// on to the client if there is one.
type responder struct {
	dns.ResponseWriter // the client's; nil in the background

	cache    *Cache
	counters *Counters
	key      wire.Key
	question dns.Question
	do, ad   bool
	wildcard func() string

	local, remote net.Addr // addresses in place of the client's, if not nil

	replaceStale bool // take only what may replace a stale answer

	// A refresh goes on with the count of uses of the answer of kind of, which
	// was hits at the last use, at seen.
	refresh bool
	of      store.Kind
	hits    uint32
	seen    store.Time

	out outcome
	cut bool // a response did not fit its transport
	raw bool // there was a response as octets, which is not looked into
}

var errNilMessage = errors.New("cache: response message is nil")

// newResponder makes a responder without a client. It keeps nothing of q.
func (c *Cache) newResponder(ctx context.Context, q *query) *responder {
	return &responder{
		cache:    c,
		counters: q.counters,
		key:      bytes.Clone(q.key),
		question: q.r.Question[0],
		do:       q.do,
		ad:       q.ad,
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
	w.out.refreshed = false
	client := w.ResponseWriter
	if w.replaceStale {
		switch w.judge(res) {
		case ignore:
			return nil
		case keepOnly:
			client = nil
		case replace:
			w.out.refreshed = true
		}
	}
	if res == nil {
		return errNilMessage
	}
	w.cut = w.cut || res.Truncated
	res = res.Copy() // it may be in a plugin's hands
	w.take(res)
	if client == nil {
		return nil
	}
	return client.WriteMsg(res)
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
	if res.Truncated || !answersTo(res, w.question) {
		w.cut = w.cut || res.Truncated
		return ignore
	}
	now := w.cache.now().UTC()
	if w.cache.preferPositive {
		if usable(res, now) {
			return replace
		}
		return keepOnly
	}
	switch t, _ := response.Typify(res, now); t {
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
// asked.
func (w *responder) take(res *dns.Msg) {
	c := w.cache
	now := c.now()
	t := classify(res, now.UTC())
	life := c.lifetime(res, t)
	ttl := uint32(life / time.Second)
	storable := cacheable(res, t) && life > 0
	mine := answersTo(res, w.question)
	subnet := forOneSubnet(res)
	for _, section := range []*[]dns.RR{&res.Answer, &res.Ns, &res.Extra} {
		*section = withTTL(*section, ttl)
	}
	a, err := wire.Pack(res)
	w.out.answered, w.out.answer, w.out.ttl, w.out.truncated = true, a, ttl, res.Truncated
	w.out.shared = mine && !subnet && err == nil
	w.out.wildcard = w.wildcard()
	if storable && !mine {
		w.counters.drops.Inc()
	}
	if storable && w.out.shared {
		w.store(kindOf(t), &store.Entry{
			Stored:    c.engine.Store().Time(now),
			TTL:       ttl,
			Answer:    a,
			Answering: answers(res),
			Wildcard:  w.out.wildcard,
			Refresh:   w.refresh,
			Of:        w.of,
			Hits:      w.hits,
			Seen:      w.seen,
		})
	}
	if mine {
		res.Question[0].Name = w.question.Name
	}
	if !w.do && !w.ad {
		res.AuthenticatedData = false
	}
}

// store stores the entry unless its zone is excepted.
func (w *responder) store(kind store.Kind, entry *store.Entry) {
	c := w.cache
	excepted := c.pexceptZones
	if kind == store.Negative {
		excepted = c.nexceptZones
	}
	if contains(excepted, w.key.Name()) {
		return
	}
	w.counters.stored(c.engine.Store(), c.engine.Put(w.key, kind, entry))
}

// storeFailure stores SERVFAIL for a query that was not answered at all, so
// that clients that repeat it do not all go upstream.
func (w *responder) storeFailure(r *dns.Msg) {
	failure := new(dns.Msg)
	failure.SetRcode(r, dns.RcodeServerFailure)
	w.take(failure)
	w.out.answered = false
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
	w.raw = true
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
