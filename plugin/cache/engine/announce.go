package engine

import (
	"time"

	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// Fast paths hold copies of answers. They are told of an answer when it is used, and it
// is withdrawn before the engine would give another one.

// OnWithdraw has fn called when an announced answer is to be withdrawn, under a lock. It
// must be set before the first call of Claim.
func (e *Engine) OnWithdraw(fn func(key wire.Key)) { e.store.OnWithdraw(fn) }

// Prefetches reports whether answers that are used often are asked again before they expire.
func (e *Engine) Prefetches() bool { return e.opts.Prefetch > 0 }

// Claim reports whether the answer for the key should be announced: fast paths were not
// told of it shortly before. Of several callers at once, one or a few get true.
func (e *Engine) Claim(key wire.Key, now time.Time) bool {
	t := e.store.Time(now)
	v := e.store.View(key)
	defer v.Close()
	r := e.choose(&v, t)
	if r == nil || r.Announced(t) || !e.announceable(r) {
		return false
	}
	r.Announce(t)
	return true
}

// announceable reports whether fast paths may give an answer. Failures are not announced:
// they end when the upstream recovers.
func (e *Engine) announceable(r *store.Record) bool {
	if e.opts.KeepTTL || r.Kind() == store.Retained {
		return false
	}
	rcode := r.Flags().Rcode()
	return rcode == rcodeSuccess || rcode == rcodeNameError
}

const (
	rcodeSuccess   = 0
	rcodeNameError = 3
)

// Announced is an answer that fast paths may give. Its memory may be used only during
// the call that has it.
type Announced struct {
	Answer wire.Answer
	Denial bool
	Stored time.Time
	TTL    uint32 // seconds from then
	// Serve is the number of seconds after Stored for which it may be given. After it,
	// this engine decides whether to refresh the answer.
	Serve uint32
}

// NameError reports whether the answer denies its name (NXDOMAIN).
func (a *Announced) NameError() bool { return a.Answer.Flags.Rcode() == rcodeNameError }

// Announce calls put with the answer that a query with the key gets now, if fast paths may
// give it. The answer stays in force until put returns: it runs under a lock, and must
// not wait.
func (e *Engine) Announce(key wire.Key, now time.Time, put func(*Announced)) {
	t := e.store.Time(now)
	v := e.store.View(key)
	defer v.Close()
	r := e.choose(&v, t)
	if r == nil || !e.announceable(r) {
		return
	}
	serve := int64(r.TTL())
	if e.opts.Prefetch > 0 {
		serve -= e.threshold(r.TTL())
	}
	if r.Left(t) <= int64(r.TTL())-serve {
		return
	}
	r.Announce(t)
	put(&Announced{
		Answer: r.Answer(), Denial: r.Kind() == store.Negative, TTL: r.TTL(), Serve: uint32(serve),
		Stored: e.store.Epoch().Add(time.Duration(r.Stored())),
	})
}

// Used counts n uses of the answer for the key by a fast path.
func (e *Engine) Used(key wire.Key, n uint32, now time.Time) {
	t := e.store.Time(now)
	v := e.store.View(key)
	defer v.Close()
	r := e.choose(&v, t)
	if r == nil || n == 0 {
		return
	}
	for range min(n, store.MaxUses) {
		r.Touch()
	}
	if e.opts.Prefetch > 0 {
		r.Count(t, e.opts.Gap)
		r.CountMore(n - 1)
	}
}
