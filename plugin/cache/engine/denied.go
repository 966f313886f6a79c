package engine

import (
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/cut"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// existsFor is how long a name counts as one that exists after the answer that showed it
// has expired. A denial of a name above it does not count as long.
const existsFor = time.Hour

// Exists records that the upstream has said that a name exists, in an answer that lives for
// ttl. No denial of it, or of a name above it, is used for other questions meanwhile, also
// if it is stored already.
func (e *Engine) Exists(name []byte, now time.Time, ttl time.Duration) {
	e.existing.Add(name, seconds(e.store.Time(now.Add(ttl+existsFor))))
}

// InheritNames takes over from an engine before a reload which names exist, before this one is used.
func (e *Engine) InheritNames(from *Engine, now time.Time) {
	e.existing.Inherit(from.existing, int64(seconds(e.store.Time(now)))+1-int64(seconds(from.store.Time(now))))
}

// seconds returns the time in seconds, rounded up.
func seconds(t store.Time) uint32 {
	return uint32((t + store.Time(time.Second) - 1) / store.Time(time.Second))
}

// A record of a denial has its scope in the mark, and by how many seconds its TTL is longer
// than the upstream allowed: the cache has a smallest TTL, which is only for the question.
const (
	scopeShift = 5
	maxRaised  = 1<<scopeShift - 1
)

// MarkOf returns the mark of a record with a denial. raised is the part of its TTL that the
// upstream did not allow.
func MarkOf(scope cut.Scope, raised time.Duration) uint8 {
	if raised > maxRaised*time.Second {
		return 0
	}
	return uint8(scope)<<scopeShift | uint8(raised/time.Second)
}

// Denied reports whether a denial of another question denies this one, too, as far as levels
// allow. It copies the denial to f, and says which scope it needed: Addresses, Name or Below.
// A stale denial denies nothing else.
//
// Queries without the RD bit ask for nothing but what the upstream itself has, and our own
// checks are among them. For queries with a client subnet the upstream may have names of its
// own. Neither is denied.
func (e *Engine) Denied(key wire.Key, levels *cut.Levels, now time.Time, f *Found) (cut.Scope, bool) {
	level, _ := levels.Of(key.Name())
	if level == cut.PerType || key.Class() != dns.ClassINET || key.Bits()&lenient != 0 {
		return cut.Question, false
	}
	l := denialLookup{engine: e, key: key, level: level, levels: levels, now: e.store.Time(now), found: f}
	var buf [wire.MaxKey]byte
	ok := l.among(append(wire.Key(buf[:0]), key...))
	return l.scope, ok
}

// denialLookup looks for a denial that denies key.
type denialLookup struct {
	engine *Engine
	key    wire.Key
	level  cut.Level
	levels *cut.Levels
	now    store.Time
	found  *Found
	scope  cut.Scope
}

// deniers are the types whose denials are looked for, the first two also above the name.
var deniers = [...]uint16{dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeTXT, dns.TypeSRV, dns.TypeMX}

// among looks for the denial. other is the key, of which the type is changed.
func (l *denialLookup) among(other wire.Key) bool {
	need := cut.Name
	if t := l.key.Type(); t == dns.TypeA || t == dns.TypeAAAA {
		need = cut.Addresses
	}
	for _, t := range deniers {
		if l.by(other.WithType(t), need) {
			return true
		}
	}
	if l.level < cut.BelowToo {
		return false
	}
	for _, t := range deniers[:2] {
		other.WithType(t)
		// A zone has a name, and the denied name is below it: two labels at least.
		for above := len(wire.Parent(other.Name())); above > 0; {
			k := other[len(other.Name())-above:]
			parent := wire.Parent(k.Name())
			if len(parent) <= 1 {
				break
			}
			if l.by(k, cut.Below) {
				return true
			}
			above = len(parent)
		}
	}
	return false
}

// by reports whether the denial with the key k denies the question, and copies it.
func (l *denialLookup) by(k wire.Key, need cut.Scope) bool {
	e := l.engine
	v := e.store.View(k)
	defer v.Close()
	r := v.Record(store.Negative)
	if r == nil || cut.Scope(r.Mark()>>scopeShift) < need || e.existing.Has(k.Name(), seconds(l.now)) {
		return false
	}
	raised := int64(r.Mark() & maxRaised)
	left := r.Left(l.now) - raised
	if left <= 0 {
		return false
	}
	if need == cut.Below {
		if level, _ := l.levels.Of(k.Name()); level < cut.BelowToo {
			return false
		}
	}
	a := r.Answer()
	f := l.found
	answer, ok := a.Denial(f.buf[:0], k.Name(), l.key.Name())
	if !ok {
		return false
	}
	r.Touch()
	*f = Found{Kind: store.Negative, TTL: r.TTL() - uint32(raised), Left: left, Stored: r.Stored(), Answer: answer, buf: answer.Body[:0], denied: len(k.Name())}
	l.scope = need
	return true
}

// Prove records that a name below the denied one was denied, too: all names below are.
func (e *Engine) Prove(name []byte, bits wire.Bits) {
	for _, t := range deniers[:2] {
		var buf [wire.MaxKey]byte
		key := wire.AppendQuestion(buf[:0], name, t, dns.ClassINET, bits)
		v := e.store.View(key)
		mark := uint8(0)
		if r := v.Record(store.Negative); r != nil {
			mark = r.Mark()
		}
		v.Close()
		if cut.Scope(mark>>scopeShift) == cut.Unproven {
			e.store.SetMark(key, store.Negative, mark, MarkOf(cut.Below, time.Duration(mark&maxRaised)*time.Second))
		}
	}
}

// Knows reports whether the name is known to exist, or whether there is a fresh response to
// the key. Then it need not be asked for, to learn whether it is denied.
func (e *Engine) Knows(key wire.Key, now time.Time) (exists, answered bool) {
	t := e.store.Time(now)
	if e.existing.Has(key.Name(), seconds(t)) {
		return true, false
	}
	v := e.store.View(key)
	defer v.Close()
	r := v.Record(store.Negative)
	return false, r != nil && r.Left(t)-int64(r.Mark()&maxRaised) > 0
}

// NextToLearn returns the key of the first of the names that is to be asked for, to learn whether it is
// denied: again, if a known denial counts as none.
func (e *Engine) NextToLearn(names [][]byte, again bool, now time.Time) (wire.Key, bool) {
	for _, name := range names {
		key := wire.AppendQuestion(nil, name, dns.TypeA, dns.ClassINET, 0)
		exists, answered := e.Knows(key, now)
		if !exists {
			return key, again || !answered
		}
	}
	return nil, false
}

// Existing returns the memory of which names exist, for another process: to be filled before
// this engine is used. Its times are seconds after the epoch of the store.
func (e *Engine) Existing() *cut.Existing { return e.existing }
