package engine

import (
	"bytes"
	"sync/atomic"
	"time"

	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// Scope selects answers. The zero value selects all.
type Scope struct {
	// Name, in wire format and lower case, selects the answers to questions for it, and
	// the answers that have records of it, for example at the end of an alias.
	Name []byte
	// Below selects the names below Name too.
	Below bool
}

// Covers reports whether the scope selects an answer.
func (s Scope) Covers(key wire.Key, a *wire.Answer) bool {
	return s.Name == nil || s.Asks(key) || a.Owns(key.Name(), s.has)
}

// Asks reports whether the scope selects the name of the question.
func (s Scope) Asks(key wire.Key) bool { return s.Name == nil || s.has(key.Name()) }

func (s Scope) has(name []byte) bool {
	if s.Below {
		return wire.InZone(name, s.Name)
	}
	return bytes.Equal(name, s.Name)
}

// Generation numbers the periods between flushes. 0 is not one of them.
type Generation uint64

// Generation returns the current generation. A caller that asks upstream reads it before
// it sends the query, and gives it to Put: an answer that was on its way during a flush
// is not stored.
func (e *Engine) Generation() Generation { return e.flushes.generation() }

// Settled returns the current generation, or another one while a flush still removes
// answers. A reader of all answers has none that were to be removed if it is equal to
// the generation afterwards.
func (e *Engine) Settled() Generation { return Generation(e.flushes.done.Load() + 1) }

// Flush removes the answers that scope covers. Answers to queries that were sent before
// the flush are not stored. Flush calls removed for each answer, under a lock. removed
// must not keep the key or the record.
func (e *Engine) Flush(scope Scope, removed func(key wire.Key, r *store.Record)) {
	defer e.flushes.done.Add(1)
	e.putting.Lock()
	e.flushes.add(scope)
	e.putting.Unlock()
	// A denial of a name above must not go on to deny the names.
	e.Exists(scope.Name, time.Now(), 0)
	e.store.RemoveIf(func(key wire.Key, r *store.Record) bool {
		a := r.Answer()
		if !scope.Covers(key, &a) {
			return false
		}
		removed(key, r)
		return true
	})
}

// flushes remembers the last flushes.
type flushes struct {
	count atomic.Uint64 // that have begun
	done  atomic.Uint64 // that have removed their answers
	last  [32]Scope     // a ring, indexed by count
}

func (f *flushes) generation() Generation { return Generation(f.count.Load() + 1) }

func (f *flushes) add(s Scope) {
	n := f.count.Load()
	f.last[n%uint64(len(f.last))] = s
	f.count.Store(n + 1)
}

// cover reports whether a flush since the generation covers the answer. It is true for
// flushes that are no longer remembered.
func (f *flushes) cover(since Generation, key wire.Key, a *wire.Answer) bool {
	now := f.generation()
	if since == 0 || since == now {
		return false
	}
	if uint64(now-since) > uint64(len(f.last)) {
		return true
	}
	for ; since < now; since++ {
		if f.last[uint64(since-1)%uint64(len(f.last))].Covers(key, a) {
			return true
		}
	}
	return false
}
