// Package engine decides which cached answer a query gets, and whether it is
// time to ask again. It stands between the wire format, the store and whoever
// asks: the plugin, with messages, and a reader of sockets, with octets.
//
// The package does not know CoreDNS.
package engine

import (
	"sync"
	"time"

	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// Options say what is served from the store.
type Options struct {
	Store store.Options

	// Stale is how long an expired answer is served. 0: not at all.
	Stale time.Duration
	// PreferPositive serves a positive answer, stale if need be, before any
	// denial.
	PreferPositive bool
	// KeepTTL answers with the TTL an answer had when it was stored.
	KeepTTL bool

	// Prefetch is the number of uses, with no more than Gap between two of
	// them, that make an answer worth refreshing before it expires. 0: never.
	Prefetch int
	Gap      time.Duration
	// Percentage of its TTL that such an answer has left when it is refreshed.
	Percentage int
}

// Engine serves cached answers. Its methods may be called from several
// goroutines at once.
type Engine struct {
	store *store.Store
	opts  Options
	stale int64 // seconds

	// putting is held for reading while an answer is put, and exclusively while
	// a flush begins: an answer is put before it, and then flushed, or knows of it.
	putting sync.RWMutex
	flushes flushes
	sources sources
}

// New reserves the memory of an engine; Close gives it back.
func New(o Options) (*Engine, error) {
	o.Store.Stale = o.Stale.Truncate(time.Second)
	s, err := store.New(o.Store)
	if err != nil {
		return nil, err
	}
	return &Engine{store: s, opts: o, stale: int64(o.Stale / time.Second)}, nil
}

// Close empties the engine and gives its memory back. It goes on to find and
// store nothing.
func (e *Engine) Close() { e.store.Close() }

// Store is where the answers are.
func (e *Engine) Store() *store.Store { return e.store }

// Found is an answer that was looked up, in memory of its own that is used
// again for the next.
type Found struct {
	Kind     store.Kind
	TTL      uint32 // seconds the answer had to live when it was stored
	Left     int64  // seconds it has now, zero or less if it is stale
	Stored   store.Time
	Answer   wire.Answer
	Wildcard string

	Hits     uint32 // uses in a row, which are counted if Prefetch is on
	Prefetch bool   // it is used enough, and near enough to its end, to ask again
	Retry    bool   // the last refresh did not fail just now

	buf []byte
}

// Stale reports whether the answer has expired.
func (f *Found) Stale() bool { return f.Left <= 0 }

// ServeTTL is the TTL to answer with: what is left, 0 for a stale answer, or
// the original one with KeepTTL.
func (e *Engine) ServeTTL(f *Found) uint32 {
	if e.opts.KeepTTL {
		return f.TTL
	}
	return uint32(max(f.Left, 0))
}

// Lookup copies the answer for the key to f and reports whether there is one.
func (e *Engine) Lookup(key wire.Key, now time.Time, f *Found) bool {
	return e.lookup(key, key, now, f) || key.Bits()&lenient != 0 && e.lookupOther(key, now, f)
}

// lenient are the bits of queries for which an answer to another query does, while
// it is fresh: what a resolver found with recursion, for who asks for no more than the
// resolver knows; and what is for all networks, for who asks for the answer for
// one, or for none.
const (
	lenient = wire.NoRD | subnets
	subnets = wire.Subnet | wire.NoSubnet
)

// otherBits calls try with the bits of those other queries until it returns
// true.
func otherBits(bits wire.Bits, try func(wire.Bits) bool) bool {
	for _, less := range [...]wire.Bits{wire.NoRD, subnets, lenient} {
		if bits&less != 0 && try(bits&^less) {
			return true
		}
	}
	return false
}

func (e *Engine) lookupOther(key wire.Key, now time.Time, f *Found) bool {
	var buf [wire.MaxKey]byte
	return otherBits(key.Bits(), func(bits wire.Bits) bool {
		return e.lookup(key.AppendWith(buf[:0], bits), key, now, f)
	})
}

// lookup copies the answer with the key if it may be given to a query with the key
// asked.
func (e *Engine) lookup(key, asked wire.Key, now time.Time, f *Found) bool {
	t := e.store.Time(now)
	v := e.store.View(key)
	defer v.Close()
	r := e.choose(&v, t)
	own := key.Bits() == asked.Bits()
	if r == nil || !own && !serves(r, asked, t) {
		return false
	}
	r.Touch()
	f.Kind, f.TTL, f.Left, f.Stored = r.Kind(), r.TTL(), r.Left(t), r.Stored()
	f.Wildcard = r.Wildcard()
	f.Retry = r.Retry(t)
	f.Prefetch, f.Hits = false, r.Hits()
	// Who asks otherwise cannot refresh the answer.
	if own && e.opts.Prefetch > 0 && !f.Stale() {
		f.Hits = r.Count(t, e.opts.Gap)
		f.Prefetch = f.Hits >= uint32(e.opts.Prefetch) && f.Left <= e.threshold(f.TTL)
	}
	a := r.Answer()
	n := len(a.Body)
	f.buf = append(append(f.buf[:0], a.Body...), a.TTLs...)
	f.Answer = wire.Answer{Flags: a.Flags, Counts: a.Counts, Body: f.buf[:n:n], TTLs: f.buf[n:]}
	return true
}

// serves reports whether the answer to one query does for another with the key.
func serves(r *store.Record, asked wire.Key, now store.Time) bool {
	return r.Left(now) > 0 && (asked.Bits()&subnets == 0 || r.ForAll())
}

// threshold is the TTL left at which a popular answer is refreshed, in
// seconds: Percentage of the whole, rounded up.
func (e *Engine) threshold(ttl uint32) int64 {
	return (int64(e.opts.Percentage)*int64(ttl) + 99) / 100
}

// choose picks among the answers to one question. A denial goes before a
// positive answer, since it is newer or the positive one would have been
// served; a failure does not, since it says nothing about the name.
func (e *Engine) choose(v *store.View, now store.Time) *store.Record {
	positive := e.servable(v.Record(store.Positive), now)
	if e.opts.PreferPositive && e.stale > 0 {
		if positive != nil && positive.Answering() {
			return positive
		}
		last := v.Record(store.Positive)
		if last == nil || !last.Answering() {
			if kept := e.servable(v.Record(store.Retained), now); kept != nil {
				return kept
			}
		}
	}
	if negative := e.servable(v.Record(store.Negative), now); negative != nil {
		if negative.Flags().Rcode() == rcodeServerFailure && positive != nil {
			return positive
		}
		return negative
	}
	return positive
}

const rcodeServerFailure = 2

// servable returns r if it may be served, fresh or stale, and nil if not.
func (e *Engine) servable(r *store.Record, now store.Time) *store.Record {
	if r == nil {
		return nil
	}
	if left := r.Left(now); left > 0 || -left < e.stale {
		return r
	}
	return nil
}

// Asked is what is known of the query upstream that brought an answer. The
// zero value knows nothing.
type Asked struct {
	// Generation was the engine's when the query was sent.
	Generation Generation
	// From is who answered, an address for example.
	From string
}

// Servable reports whether an answer may be served, fresh or stale.
func (e *Engine) Servable(r *store.Record, now store.Time) bool { return e.servable(r, now) != nil }

// Put stores an answer as of now, unless it was flushed after it was asked for. A
// positive answer displaces the denial it contradicts; under PreferPositive only
// if it answers the question, and if it does not, the one it replaces is
// retained. Put sets the source of the entry.
func (e *Engine) Put(key wire.Key, kind store.Kind, entry *store.Entry, asked Asked) store.Evicted {
	if e.sources.crowded.Load() {
		e.forgetSources(entry.Stored)
	}
	e.putting.RLock()
	defer e.putting.RUnlock()
	if e.flushes.cover(asked.Generation, key, &entry.Answer) {
		return store.Evicted{}
	}
	entry.Source = e.SourceNumber(asked.From)
	if kind == store.Positive && e.opts.PreferPositive && !entry.Answering {
		e.store.Retain(key)
	}
	gone, _ := e.store.Put(key, kind, entry)
	if kind == store.Positive && (!e.opts.PreferPositive || entry.Answering) {
		e.store.Remove(key, store.Negative)
		if e.opts.PreferPositive {
			e.store.Remove(key, store.Retained)
		}
	}
	return gone
}
