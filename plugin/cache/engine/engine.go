// Package engine decides which cached answer a query gets, and whether it is time to ask
// again. It stands between its callers and the packages wire and store. One caller is
// the plugin, which has messages. Another is a reader of sockets, which has bytes.
//
// The package does not import CoreDNS.
package engine

import (
	"sync"
	"time"

	"github.com/trackless-dns/trackless/plugin/cache/cut"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// Options decide which answers are served.
type Options struct {
	Store store.Options

	// Stale is how long an expired answer is served. 0: it is not served.
	Stale time.Duration
	// PreferPositive serves a positive answer before any denial, also if the positive
	// answer is stale.
	PreferPositive bool
	// KeepTTL answers with the TTL an answer had when it was stored.
	KeepTTL bool

	// Prefetch is the number of uses after which an answer is refreshed before it
	// expires, if there is no more than Gap between two uses. 0: never.
	Prefetch int
	Gap      time.Duration
	// Percentage is the part of the TTL that is left when such an answer is refreshed.
	Percentage int
}

// Engine serves cached answers. Its methods may be called from several
// goroutines at once.
type Engine struct {
	store *store.Store
	opts  Options
	stale int64 // seconds

	// putting is held for reading while an answer is put, and exclusively while a flush
	// begins. So an answer is put before the flush, which removes it, or Put knows of
	// the flush.
	putting sync.RWMutex
	flushes flushes
	sources sources

	existing *cut.Existing
}

// existingShare is the divisor that turns the memory budget into the part for names that
// exist.
const existingShare = 64

// New reserves the memory of an engine. Close releases it.
func New(o Options) (*Engine, error) {
	o.Store.Stale = o.Stale.Truncate(time.Second)
	existing := cut.NewExisting(o.Store.Bytes / existingShare)
	o.Store.Beside = existing.Bytes()
	s, err := store.New(o.Store)
	if err != nil {
		return nil, err
	}
	return &Engine{store: s, opts: o, stale: int64(o.Stale / time.Second), existing: existing}, nil
}

// Close empties the engine and releases its memory. Afterwards it finds and stores
// nothing.
func (e *Engine) Close() { e.store.Close() }

// Store returns the store of the answers.
func (e *Engine) Store() *store.Store { return e.store }

// Found is an answer that was looked up. Its memory is reused by the next lookup into the
// same Found.
type Found struct {
	Kind     store.Kind
	TTL      uint32 // seconds the answer had to live when it was stored
	Left     int64  // seconds it has left, zero or less if it is stale
	Stored   store.Time
	Answer   wire.Answer
	Wildcard string

	Hits     uint32 // uses in a row, counted if prefetch is on
	Prefetch bool   // it is popular and about to expire: ask again
	Retry    bool   // a refresh may be tried: none has failed just now

	buf    []byte
	denied int // length of the denied name
}

// Denied returns the denied name, which is the question name or above it, if Engine.Denied
// found the answer.
func (f *Found) Denied(question []byte) []byte { return question[len(question)-f.denied:] }

// Stale reports whether the answer has expired.
func (f *Found) Stale() bool { return f.Left <= 0 }

// ServeTTL returns the TTL of the reply: the seconds left, 0 for a stale answer, or the
// original TTL with KeepTTL.
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

// lenient are the bits of queries that may get the answer to a query without these bits,
// while it is fresh. A query without recursion may get an answer that was found with
// recursion. A query with a client subnet option may get an answer that is for all
// networks.
const (
	lenient = wire.NoRD | subnets
	subnets = wire.Subnet | wire.NoSubnet
)

// otherBits calls try with the bits of each query whose answer may be used instead,
// until try returns true.
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

// lookup copies the answer with the key to f, if a query with the key asked may get it.
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
	// A query with other bits cannot refresh the answer.
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

// serves reports whether a query with the key asked may get the answer to a query
// with other bits.
func serves(r *store.Record, asked wire.Key, now store.Time) bool {
	return r.Left(now) > 0 && (asked.Bits()&subnets == 0 || r.ForAll())
}

// threshold returns the seconds left at which a popular answer is refreshed: Percentage
// of the TTL, rounded up.
func (e *Engine) threshold(ttl uint32) int64 {
	return (int64(e.opts.Percentage)*int64(ttl) + 99) / 100
}

// choose returns the answer to serve among those to one question, or nil. A denial comes
// before a positive answer: it is newer, since no query goes upstream while the positive answer is
// served. A failure does not, since it says nothing about the name.
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

// Has reports whether a query with the key gets an answer, fresh or stale. That is no use of
// the answer.
func (e *Engine) Has(key wire.Key, now time.Time) bool {
	v := e.store.View(key)
	defer v.Close()
	return e.choose(&v, e.store.Time(now)) != nil
}

// Asked describes the query upstream that brought an answer. In the zero value nothing
// is known.
type Asked struct {
	// Generation is that of the engine when the query was sent.
	Generation Generation
	// From names the upstream that answered, for example by its address.
	From string
}

// Servable reports whether an answer may be served, fresh or stale.
func (e *Engine) Servable(r *store.Record, now store.Time) bool { return e.servable(r, now) != nil }

// Restore stores an answer that another engine had, as it was there. The other engine may have
// got it since it gave a denial of the same name: as in Put, the answer removes an older one.
func (e *Engine) Restore(key wire.Key, kind store.Kind, entry *store.Entry) (ok bool) {
	_, ok = e.store.Put(key, kind, entry)
	if !ok || kind != store.Positive || e.opts.PreferPositive && !entry.Answering {
		return ok
	}
	v := e.store.View(key)
	denial := v.Record(store.Negative)
	older := denial != nil && denial.Stored() < entry.Stored
	v.Close()
	if older {
		e.store.Remove(key, store.Negative)
	}
	return ok
}

// Put stores an answer, unless a flush since the query was sent covers it. A positive
// answer removes the denial of the same name. With PreferPositive it does so only if it
// answers the question. If it does not, the positive answer that it replaces is
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
