package engine

import (
	"time"

	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// Result is the result of Reply.
type Result uint8

const (
	// Miss means that there is no answer.
	Miss Result = iota
	// Refresh means that the answer is stale or due for prefetch. A caller that can ask
	// upstream must decide.
	Refresh
	// Long means that the reply is larger than the client accepts, or than dst.
	Long
	// Success is a reply with a positive answer.
	Success
	// Denial is a reply with a denial or a failure.
	Denial
)

// Reply answers the query msg, from which q was parsed. It writes the reply to dst and
// returns its length. There is a reply only if the result is Success or Denial, and only
// then it counts as a use of the answer. Reply allocates nothing.
//
// q.Size is the largest UDP reply that the client accepts. For other transports the
// caller can raise it.
func (e *Engine) Reply(dst, msg []byte, q *wire.Query, now time.Time) (int, Result) {
	t := e.store.Time(now)
	key := q.Key()
	n, result := e.reply(dst, msg, q, key, t)
	if result == Miss && key.Bits()&lenient != 0 {
		var buf [wire.MaxKey]byte
		otherBits(key.Bits(), func(bits wire.Bits) bool {
			n, result = e.reply(dst, msg, q, key.AppendWith(buf[:0], bits), t)
			return result != Miss
		})
	}
	return n, result
}

// reply answers the query with the answer that has the key.
func (e *Engine) reply(dst, msg []byte, q *wire.Query, key wire.Key, t store.Time) (int, Result) {
	v := e.store.View(key)
	r := e.choose(&v, t)
	own := key.Bits() == q.Key().Bits()
	if r == nil || !own && !serves(r, q.Key(), t) {
		v.Close()
		return 0, Miss
	}
	left := r.Left(t)
	if own && (left <= 0 || e.due(r, left)) {
		v.Close()
		return 0, Refresh
	}
	a := r.Answer()
	if size := q.ReplyLen(&a); size > int(q.Size) || size > len(dst) {
		v.Close()
		return 0, Long
	}
	if e.opts.KeepTTL {
		left = int64(r.TTL())
	}
	if own && e.opts.Prefetch > 0 {
		r.Count(t, e.opts.Gap)
	}
	r.Touch()
	result := Success
	if r.Kind() == store.Negative {
		result = Denial
	}
	n := q.Reply(dst, msg, &a, uint32(left))
	v.Close()
	return n, result
}

// due reports whether this use would start a prefetch. It does not count the use.
func (e *Engine) due(r *store.Record, left int64) bool {
	return e.opts.Prefetch > 0 && int64(r.Hits())+1 >= int64(e.opts.Prefetch) && left <= e.threshold(r.TTL())
}
