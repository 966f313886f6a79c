package cache

import (
	"context"
	"net"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// An upstream that was away comes back, as after a boot, when kube-proxy has its
// rules. What was asked before is of no use then: no packet of it has arrived. A
// handshake is repeated after one, three, seven and fifteen seconds only, not always
// with the new rules, and a dial takes up to half a minute to find that out. So:
//
//   - A query waits for five seconds at most. Clients do not wait longer.
//   - When others have been answered who asked later, it is asked anew, over a new
//     connection.
//   - While nothing is heard at all, a few of those who wait knock.
const (
	askTimeout = 5 * time.Second

	// maxAsks is how often a query is sent at most.
	maxAsks = 3

	// lookInterval is how often a query that waits looks at what others have heard.
	lookInterval = 500 * time.Millisecond

	// maxKnocks is how many may knock at a time, each for knockTimeout, and knockAfter
	// how long they have waited then: longer than CoreDNS's forward waits for a
	// response, after which it tries again itself.
	maxKnocks    = 8
	knockAfter   = 2500 * time.Millisecond
	knockTimeout = time.Second
)

// ask passes the query on until there is a response, or no hope of one, or another
// query has got the answer.
func (c *Cache) ask(ctx context.Context, w *responder, r *dns.Msg) (int, error) {
	limited, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if w.question.Qtype == dns.TypeHINFO {
		// CoreDNS's loop takes a query that it sees for the third time for a loop, and
		// ends the process. It asks for HINFO, and again by itself.
		w.sent = c.flights.responses.sends()
		return c.passDown(limited, w, r)
	}
	for asks := 1; ; asks++ {
		code, gaveUp, err := c.askOnce(limited, w, r, asks < maxAsks)
		var f engine.Found
		if !gaveUp || limited.Err() != nil || c.found(w.key, &f) {
			return code, err
		}
	}
}

// askOnce passes the query on. It reports whether it gave up, if it may, since the
// upstream is back. The context ends what waits for a connection; CoreDNS's forward does not
// heed it while it waits for a response, two seconds.
func (c *Cache) askOnce(ctx context.Context, w *responder, r *dns.Msg, mayGiveUp bool) (code int, gaveUp bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.sent = c.flights.responses.sends()
	look := &looker{cache: c, sent: w.sent, giveUp: cancel, mayGiveUp: mayGiveUp, ctx: ctx, question: w.question, local: w.LocalAddr(), tcp: overTCP(w.RemoteAddr())}
	look.timer.Store(time.AfterFunc(lookInterval, look.look))
	defer look.stop() // also where a plugin panics
	code, err = c.passDown(ctx, w, r)
	failed := w.unanswered(code, err)
	w.back = failed && c.flights.responses.misses(w.sent)
	return code, failed && look.gaveUp.Load(), err
}

// passDown passes the query on. It asks for the AD bit, which the cache keeps for
// clients that want it.
func (c *Cache) passDown(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	r = r.Copy()
	r.AuthenticatedData = true
	return plugin.NextOrFailure(c.Name(), c.Next, markUnderWay(ctx), w, r)
}

// looker looks at what others have heard while a query is under way. Of that query it
// knows no more than nobody changes.
type looker struct {
	cache     *Cache
	sent      sent
	giveUp    context.CancelFunc
	mayGiveUp bool
	ctx       context.Context
	question  dns.Question
	local     net.Addr
	tcp       bool

	timer  atomic.Pointer[time.Timer]
	over   atomic.Bool
	gaveUp atomic.Bool
}

// look runs in a goroutine of its own.
func (l *looker) look() {
	known := &l.cache.flights.responses
	if time.Since(l.sent.at) >= knockAfter && !known.isBack(l.sent) && known.isSilent(l.sent) && l.cache.knocks.tryAcquire() {
		l.knock()
		l.cache.knocks.release()
	}
	switch {
	case l.over.Load():
	case l.mayGiveUp && known.isBack(l.sent):
		l.gaveUp.Store(true)
		l.giveUp()
	default:
		l.timer.Load().Reset(lookInterval)
	}
}

func (l *looker) stop() {
	l.over.Store(true)
	if t := l.timer.Load(); t != nil {
		t.Stop()
	}
}

// knock asks the same beside the query, to hear whether the upstream is there.
func (l *looker) knock() {
	ctx, cancel := context.WithTimeout(metadata.ContextWithMetadata(l.ctx), knockTimeout)
	defer cancel()
	r := new(dns.Msg).SetQuestion(l.question.Name, l.question.Qtype)
	r.Question[0].Qclass = l.question.Qclass
	w := &responder{cache: l.cache, local: l.local, remote: anyAddr(l.tcp), sent: l.cache.flights.responses.sends()}
	defer recovered(l.question.Name)
	_, _ = l.cache.passDown(ctx, ear{w}, r)
}

// ear hears a response, and forgets it.
type ear struct{ *responder }

// WriteMsg implements dns.ResponseWriter.
func (e ear) WriteMsg(m *dns.Msg) error {
	if m != nil {
		e.cache.flights.responses.hears(e.sent)
	}
	return nil
}

// Write implements dns.ResponseWriter.
func (ear) Write(buf []byte) (int, error) { return len(buf), nil }

// found reports whether another query has got the answer meanwhile, which is then in
// f. A failure is none: it may be of that query only.
func (c *Cache) found(key wire.Key, f *engine.Found) bool {
	if !c.engine.Lookup(key, c.now(), f) || f.Stale() {
		return false
	}
	rcode := f.Answer.Flags.Rcode()
	return rcode == dns.RcodeSuccess || rcode == dns.RcodeNameError
}

// isOver reports whether what was found is a failure of which no upstream spoke, and
// the upstream is back.
func (c *Cache) isOver(f *engine.Found) bool {
	return f.Answer.Flags.Rcode() == dns.RcodeServerFailure && time.Duration(f.TTL)*time.Second <= unspokenTTL &&
		c.flights.responses.isBackSince(c.engine.Store().Epoch().Add(time.Duration(f.Stored)))
}
