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
	"github.com/trackless-dns/trackless/plugin/cache/failures"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// An upstream may recover while queries wait for it, as after a boot, when kube-proxy
// installs its rules. Queries that were sent before are lost: none of their packets has
// arrived. The kernel repeats a handshake only after one, three, seven and fifteen seconds,
// not always with the new rules, and a dial takes up to half a minute to fail. So:
//
//   - A query waits for five seconds at most. Clients do not wait longer.
//   - When a query that was sent later has a response, the others are asked anew, over
//     new connections, a few at a time (package slowstart).
//   - While there are no responses at all, a few of the waiting queries send a probe.
const (
	askTimeout = 5 * time.Second

	// newPatience is how long a new query waits for its turn after the upstream has
	// recovered. It is short, since another plugin may answer the query.
	newPatience = 100 * time.Millisecond

	// maxAsks bounds how often a query is sent.
	maxAsks = 3

	// checkInterval is how often a waiting query checks whether the upstream has
	// recovered.
	checkInterval = 500 * time.Millisecond

	// maxProbes bounds the probes under way, probeTimeout each of them. A query sends
	// one after it has waited for probeAfter: longer than CoreDNS's forward waits for a
	// response, after which forward tries again itself.
	maxProbes    = 8
	probeAfter   = 2500 * time.Millisecond
	probeTimeout = time.Second
)

// ask passes the query on until there is a response, until there is no hope of one, or
// until another query has got the answer.
func (c *Cache) ask(ctx context.Context, w *responder, r *dns.Msg) (int, error) {
	if isCheck(ctx) {
		w.sent = c.flights.responses.sending()
		return c.passDown(ctx, w, r)
	}
	limited, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if w.question.Qtype == dns.TypeHINFO {
		// CoreDNS's plugin loop asks for HINFO, and repeats the query itself. If it
		// sees its query for the third time, it ends the process.
		w.sent = c.flights.responses.sending()
		return c.passDown(limited, w, r)
	}
	code, err := dns.RcodeServerFailure, plugin.Error(c.Name(), context.Canceled)
	patience := newPatience
	if w.ResponseWriter == nil {
		patience = askTimeout // no client waits for it
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
		leave(!w.unanswered(code, err) && !failures.IsOwn(err))
		w.cutShort = asks > 1 && limited.Err() != nil
		if !gaveUp || limited.Err() != nil {
			return code, err
		}
		patience = askTimeout
	}
}

// askOnce passes the query on. If mayGiveUp is set, it gives up when the upstream has
// recovered, and reports that. The context ends dials; CoreDNS's forward ignores it while
// it waits for a response, up to two seconds.
func (c *Cache) askOnce(ctx context.Context, w *responder, r *dns.Msg, mayGiveUp bool) (code int, gaveUp bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.sent = c.flights.responses.sending()
	watch := &watcher{cache: c, sent: w.sent, giveUp: cancel, mayGiveUp: mayGiveUp, ctx: ctx, question: w.question, local: w.LocalAddr(), tcp: overTCP(w.RemoteAddr())}
	watch.timer = time.AfterFunc(time.Hour, watch.run)
	watch.timer.Reset(checkInterval) // only now, since run uses the timer
	defer watch.stop()               // also if a plugin panics
	code, err = c.passDown(ctx, w, r)
	failed := w.unanswered(code, err)
	w.back = failed && c.flights.responses.failed(w.sent)
	return code, failed && watch.gaveUp.Load(), err
}

// passDown passes the query on. It sets the AD bit: the cache keeps AD for clients that ask
// for it.
func (c *Cache) passDown(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	r = r.Copy()
	r.AuthenticatedData = true
	return plugin.NextOrFailure(c.Name(), c.Next, markUnderWay(ctx), w, r)
}

// watcher checks whether the upstream has recovered while a query is under way. It uses
// only those fields of the query that do not change.
type watcher struct {
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
	added  atomic.Bool // to the watchers of slow queries
}

// run checks, and sends a probe. It runs in its own goroutine.
func (l *watcher) run() {
	known := &l.cache.flights.responses
	if l.mayGiveUp {
		known.slow.add(l)
	}
	if time.Since(l.sent.at) >= probeAfter && !known.isBack(l.sent) && known.isSilent(l.sent) && l.cache.probes.tryAcquire() {
		l.probe()
		l.cache.probes.release()
	}
	if l.check(); !l.over.Load() {
		l.timer.Reset(checkInterval)
	}
}

// check ends the query if the upstream has recovered.
func (l *watcher) check() {
	if l.mayGiveUp && l.cache.flights.responses.isBack(l.sent) && !l.over.Swap(true) {
		l.gaveUp.Store(true)
		l.giveUp()
	}
}

func (l *watcher) stop() {
	l.over.Store(true)
	if ran := !l.timer.Stop() || l.added.Load(); ran {
		l.cache.flights.responses.slow.remove(l)
	}
}

// watchers has the watchers of slow queries. The zero value is ready.
type watchers struct {
	mu  sync.Mutex
	all map[*watcher]struct{}
}

func (s *watchers) add(l *watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.over.Load() {
		return
	}
	if s.all == nil {
		s.all = make(map[*watcher]struct{})
	}
	s.all[l] = struct{}{}
	l.added.Store(true)
}

func (s *watchers) remove(l *watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, l)
}

// check calls check of each watcher.
func (s *watchers) check() {
	s.mu.Lock()
	all := slices.Collect(maps.Keys(s.all))
	s.mu.Unlock()
	for _, l := range all {
		l.check()
	}
}

// probe asks the same question beside the query, to find out whether the upstream responds.
func (l *watcher) probe() {
	ctx, cancel := context.WithTimeout(metadata.ContextWithMetadata(l.ctx), probeTimeout)
	defer cancel()
	r := new(dns.Msg).SetQuestion(l.question.Name, l.question.Qtype)
	r.Question[0].Qclass = l.question.Qclass
	w := &responder{cache: l.cache, local: l.local, remote: anyAddr(l.tcp), asking: l.cache.asking(ctx), sent: l.cache.flights.responses.sending()}
	defer recovered(l.question.Name)
	_, _ = l.cache.passDown(ctx, probeWriter{w}, r)
}

// probeWriter records that there is a response, and drops it.
type probeWriter struct{ *responder }

// WriteMsg implements dns.ResponseWriter.
func (w probeWriter) WriteMsg(m *dns.Msg) error {
	if m != nil {
		w.countResponse()
	}
	return nil
}

// Write implements dns.ResponseWriter.
func (probeWriter) Write(buf []byte) (int, error) { return len(buf), nil }

// found reports whether another query has got the answer meanwhile, and copies it to f. A
// failure does not count: it may concern only that query.
func (c *Cache) found(key wire.Key, f *engine.Found) bool {
	if !c.engine.Lookup(key, c.now(), f) || f.Stale() {
		return false
	}
	rcode := f.Answer.Flags.Rcode()
	return rcode == dns.RcodeSuccess || rcode == dns.RcodeNameError
}

// isOver reports whether f is a failure without a response, and the upstream has recovered
// since.
func (c *Cache) isOver(f *engine.Found) bool {
	return f.Answer.Flags.Rcode() == dns.RcodeServerFailure && time.Duration(f.TTL)*time.Second <= noResponseTTL &&
		c.flights.responses.isBackSince(c.engine.Store().Epoch().Add(time.Duration(f.Stored)))
}

// fromLabels are the metadata labels under which plugins publish the upstream that they
// asked: "upstream" and CoreDNS's "forward".
var fromLabels = []string{"upstream/address", "forward/upstream"}

// asking is a query that goes upstream.
type asking struct {
	ctx        context.Context // the context of the query, with metadata
	generation engine.Generation
}

// asking returns the state before a query goes upstream.
func (c *Cache) asking(ctx context.Context) asking {
	return asking{ctx, c.engine.Generation()}
}

// asked returns the facts about the query when its response is there.
func (a asking) asked() engine.Asked {
	asked := engine.Asked{Generation: a.generation}
	for _, label := range fromLabels {
		if f := metadata.ValueFunc(a.ctx, label); f != nil {
			asked.From = f()
			break
		}
	}
	return asked
}

// withMetadata returns a context in which plugins below can publish the upstream that
// they asked, also if the Corefile has no directive metadata.
func withMetadata(ctx context.Context) context.Context {
	if metadata.ValueFuncs(ctx) != nil {
		return ctx
	}
	return metadata.ContextWithMetadata(ctx)
}
