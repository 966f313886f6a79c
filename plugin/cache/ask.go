package cache

import (
	"context"
	"maps"
	"net"
	"slices"
	"sync"
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
//   - As soon as another query has been answered that was sent later, it is asked
//     anew, over a new connection, a few at a time (package slowstart).
//   - While nothing is heard at all, a few of those who wait knock.
const (
	askTimeout = 5 * time.Second

	// newPatience is how long a query waits at the return of the upstream that was not
	// asked before: it may be one that another plugin answers.
	newPatience = 100 * time.Millisecond

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
	code, err := dns.RcodeServerFailure, plugin.Error(c.Name(), context.Canceled)
	patience := newPatience
	if w.ResponseWriter == nil {
		patience = askTimeout // it is asked beside another, or before anybody asks
	}
	for asks := 1; ; asks++ {
		leave, ok := c.flights.responses.start.Enter(limited, patience)
		if !ok {
			return code, err
		}
		var f engine.Found
		if asks > 1 && c.found(w.key, &f) {
			leave(false)
			return code, err
		}
		var gaveUp bool
		code, gaveUp, err = c.askOnce(limited, w, r, asks < maxAsks)
		leave(!w.unanswered(code, err))
		w.cutShort = asks > 1 && limited.Err() != nil
		if !gaveUp || limited.Err() != nil {
			return code, err
		}
		patience = askTimeout
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
	look.timer = time.AfterFunc(time.Hour, look.look)
	look.timer.Reset(lookInterval) // not before look can use it
	defer look.stop()              // also where a plugin panics
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

	timer  *time.Timer
	over   atomic.Bool
	gaveUp atomic.Bool
	added  atomic.Bool // to the lookers that are told when the upstream is back
}

// look runs in a goroutine of its own.
func (l *looker) look() {
	known := &l.cache.flights.responses
	if l.mayGiveUp {
		known.slow.add(l)
	}
	if time.Since(l.sent.at) >= knockAfter && !known.isBack(l.sent) && known.isSilent(l.sent) && l.cache.knocks.tryAcquire() {
		l.knock()
		l.cache.knocks.release()
	}
	if l.check(); !l.over.Load() {
		l.timer.Reset(lookInterval)
	}
}

// check ends the query if the upstream is back.
func (l *looker) check() {
	if l.mayGiveUp && l.cache.flights.responses.isBack(l.sent) && !l.over.Swap(true) {
		l.gaveUp.Store(true)
		l.giveUp()
	}
}

func (l *looker) stop() {
	l.over.Store(true)
	if looked := !l.timer.Stop() || l.added.Load(); looked {
		l.cache.flights.responses.slow.remove(l)
	}
}

// lookers are those of queries that take long. The zero value is ready.
type lookers struct {
	mu  sync.Mutex
	all map[*looker]struct{}
}

func (s *lookers) add(l *looker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.over.Load() {
		return
	}
	if s.all == nil {
		s.all = make(map[*looker]struct{})
	}
	s.all[l] = struct{}{}
	l.added.Store(true)
}

func (s *lookers) remove(l *looker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, l)
}

// check has all of them look whether the upstream is back.
func (s *lookers) check() {
	s.mu.Lock()
	all := slices.Collect(maps.Keys(s.all))
	s.mu.Unlock()
	for _, l := range all {
		l.check()
	}
}

// knock asks the same beside the query, to hear whether the upstream is there.
func (l *looker) knock() {
	ctx, cancel := context.WithTimeout(metadata.ContextWithMetadata(l.ctx), knockTimeout)
	defer cancel()
	r := new(dns.Msg).SetQuestion(l.question.Name, l.question.Qtype)
	r.Question[0].Qclass = l.question.Qclass
	w := &responder{cache: l.cache, local: l.local, remote: anyAddr(l.tcp), asking: l.cache.asking(ctx), sent: l.cache.flights.responses.sends()}
	defer recovered(l.question.Name)
	_, _ = l.cache.passDown(ctx, ear{w}, r)
}

// ear hears a response, and forgets it.
type ear struct{ *responder }

// WriteMsg implements dns.ResponseWriter.
func (e ear) WriteMsg(m *dns.Msg) error {
	if m != nil {
		e.hears()
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
