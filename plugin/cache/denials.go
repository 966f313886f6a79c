package cache

import (
	"bytes"
	"context"
	"strings"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/cut"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/fingerprint"
	"github.com/trackless-dns/trackless/plugin/cache/flight"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// maxLearning bounds the queries under way that learn whether a name is denied.
const maxLearning = 16

// parseNXDOMAIN reads type|name|cut|learn [ZONES...].
func parseNXDOMAIN(c *Cache, args []string) error {
	c.nxdomain = append(c.nxdomain, args)
	return c.levels.Add(args...)
}

// trustDenials switches the option nxdomain off if several plugins of the server block answer:
// a name that one of them denies may be another one's.
func (c *Cache) trustDenials(cfg *dnsserver.Config) {
	answering := fingerprint.Answering(cfg)
	if len(answering) <= 1 {
		return
	}
	if len(c.nxdomain) > 0 {
		log.Warningf("In the server block %s, nxdomain is as with the word type: several plugins answer below cache (%s), and a denial by one of them may hide names of another; put their zones into server blocks of their own",
			strings.Join(c.keys, " "), strings.Join(answering, ", "))
	}
	c.levels = cut.Levels{Default: cut.PerType}
}

// deny answers the query with the denial of another question, if there is one that denies this
// one, too.
func (c *Cache) deny(ctx context.Context, q *query, now time.Time) (served bool, code int, err error) {
	if q.key.Type() == dns.TypeHINFO {
		return false, 0, nil // plugin loop asks for HINFO, and must see its query again
	}
	scope, ok := c.engine.Denied(q.key, &c.levels, now, &q.found)
	if !ok {
		return false, 0, nil
	}
	if scope == cut.Below && q.found.Left*5 <= int64(q.found.TTL) && c.levels.Named(q.key.Name()) != nil &&
		c.learn(ctx, q.w, [][]byte{bytes.Clone(q.found.Denied(q.key.Name()))}, true) {
		// This query goes upstream, too: if its name exists, the cut is wrong, and ends.
		return false, 0, nil
	}
	q.counters.Cut(scope == cut.Below)
	code, err = c.reply(ctx, q, c.engine.ServeTTL(&q.found))
	return true, code, err
}

// understand takes from a response what it says beyond its question: that a name exists, or
// what the denial denies. It returns the mark of the record. life is how long the response is
// stored, and allowed is how long the upstream allowed.
func (w *responder) understand(ctx context.Context, res *dns.Msg, key wire.Key, life, allowed time.Duration) uint8 {
	c := w.cache
	if res.Rcode == dns.RcodeSuccess || res.Rcode == dns.RcodeNameError && len(res.Answer) > 0 {
		for _, name := range cut.Shown(res, key) {
			c.engine.Exists(name, c.now(), life)
		}
		return 0
	}
	if level, _ := c.levels.Of(key.Name()); level == cut.PerType {
		return 0
	}
	denial, ok := cut.Read(res, key)
	if !ok {
		return 0
	}
	if above, ok := denial.Proves(); ok {
		c.engine.Prove(above, key.Bits())
	}
	named := c.levels.Named(key.Name())
	if named != nil && key.Bits() == 0 {
		c.learn(ctx, w, denial.Candidates(named), false)
	}
	return engine.MarkOf(denial.Scope(named), max(life-allowed, 0))
}

// learn asks in the background for the names, which are above each other, until one is denied.
// Names of which that is known are skipped, unless a known denial is to be learned again. It reports
// whether it asks.
func (c *Cache) learn(ctx context.Context, w dns.ResponseWriter, names [][]byte, again bool) bool {
	key, ok := c.engine.NextToLearn(names, again, c.now())
	if !ok || !c.learning.tryAcquire() {
		return false
	}
	attempt := c.flights.Lead(key, flight.Class{})
	if attempt == nil {
		c.learning.release()
		return false // it is being asked for
	}
	local := w.LocalAddr()
	counters := c.Counters(serverOf(ctx))
	ctx = detach(ctx)
	go func() {
		defer c.learning.release()
		for attempt != nil {
			name := wire.NameText(key.Name())
			r := new(dns.Msg).SetQuestion(name, dns.TypeA)
			b := &background{cache: c, ctx: ctx, r: r, done: make(chan struct{}), w: &responder{
				cache: c, counters: counters, key: key, question: r.Question[0], attempt: attempt, asking: c.asking(ctx),
				wildcard: func() string { return "" }, local: local, remote: anyAddr(false),
			}}
			counters.CutProbes.Inc()
			b.run(func() { _, _ = c.ask(b.ctx, b.w, b.r) })
			if !b.w.out.Answered {
				return
			}
			if key, ok = c.engine.NextToLearn(names, false, c.now()); !ok {
				return
			}
			attempt = c.flights.Lead(key, flight.Class{})
		}
	}()
	return true
}
