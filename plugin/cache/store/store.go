package store

import (
	"fmt"
	"hash/maphash"
	"math"
	"math/bits"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

const (
	// MinBytes is the smallest budget that holds answers of every size.
	MinBytes = 512 << 10
	// MaxBytes is the largest budget. On 32-bit machines an int limits it.
	MaxBytes = min(maxShards*(maxMemory/2), math.MaxInt-1)

	minShard  = 256 << 10
	maxShards = 1024
	// minPerShard is the smallest limit of records in a shard. With a smaller one,
	// shards would fill too unevenly.
	minPerShard = 64
)

// Options are the limits of a store.
type Options struct {
	// Bytes is the memory budget, from MinBytes to MaxBytes. It includes the indices and
	// all else that grows with the number of answers.
	Bytes int
	// Beside is the part of Bytes that the caller uses itself.
	Beside int
	// Positive and Negative limit the numbers of answers. Retained answers count as
	// positive. 0: only the budget limits.
	Positive, Negative int
	// Stale is how long expired answers are kept.
	Stale time.Duration
}

// Entry is an answer to be stored.
type Entry struct {
	Stored    Time
	TTL       uint32 // seconds
	Answer    wire.Answer
	Answering bool
	ForAll    bool   // the same for all networks, as the upstream said (RFC 7871 section 7.3.1)
	Wildcard  string // at most 255 bytes
	Source    uint16 // the number of the upstream; 0: unknown
	Mark      uint8  // means what the caller wants it to mean
	History   History

	// Refresh: the entry keeps the count of uses of the record of kind Of, or Hits if
	// that record is gone. The last use was at Seen.
	Refresh bool
	Of      Kind
	Hits    uint32
	Seen    Time
}

// Evicted counts records that were removed to make room.
type Evicted struct {
	Live    [classes]int // records that could still be served, by Positive and Negative
	Expired int
}

// Store keeps packed answers by key and kind. Its methods may be called from
// several goroutines at once.
type Store struct {
	seed   maphash.Seed
	epoch  time.Time
	shift  uint // shifts a hash to the number of a shard
	shards []shard
	mem    []byte
	bytes  int
	beside int
	closed atomic.Bool
	entry  [classes]atomic.Int64
}

// New reserves the memory of a store. Close releases it.
func New(o Options) (*Store, error) {
	if o.Bytes < MinBytes || o.Bytes > MaxBytes {
		return nil, fmt.Errorf("cache: memory budget of %d bytes is out of range: choose between %d and %d", o.Bytes, MinBytes, MaxBytes)
	}
	n := o.Bytes / minShard
	for _, limit := range [classes]int{o.Positive, o.Negative} {
		if limit > 0 {
			n = min(n, limit/minPerShard)
		}
	}
	n = 1 << (bits.Len(uint(min(max(n, 1), maxShards))) - 1)
	// Of sixteen parts, one is for the index (4 bytes a slot, at most three quarters
	// full) and one for the fingerprints of evicted keys.
	share := (o.Bytes - o.Beside) / n
	if share/16*14 > maxMemory {
		return nil, fmt.Errorf("cache: a memory budget of %d bytes needs a larger limit of entries", o.Bytes)
	}
	size := share / 16 * 14 &^ (word - 1)
	// The last hole of the last ring can be smaller than a record's head.
	mem, err := reserve(n*size + int(headSize))
	if err != nil {
		return nil, err
	}
	s := &Store{
		seed:   maphash.MakeSeed(),
		epoch:  time.Now(),
		shift:  uint(64 - bits.Len(uint(n-1))),
		shards: make([]shard, n),
		mem:    mem,
		bytes:  o.Bytes,
		beside: o.Beside,
	}
	perShard := func(limit int) int { return (limit + n - 1) / n }
	limits := [classes]int{perShard(o.Positive), perShard(o.Negative)}
	for i := range s.shards {
		s.shards[i].init(mem[i*size:(i+1)*size:(i+1)*size], limits, o.Stale)
	}
	// The memory is released when the shards are gone, not the store: a View has a shard.
	runtime.AddCleanup(&s.shards[0], func(mem []byte) { release(mem) }, mem)
	return s, nil
}

// Time converts t to the clock of the store.
func (s *Store) Time(t time.Time) Time { return Time(t.Sub(s.epoch)) }

func (s *Store) shardOf(key []byte) (*shard, uint32) {
	h := maphash.Bytes(s.seed, key)
	return &s.shards[h>>s.shift], uint32(h)
}

// View is the records with one key. It holds the read lock of their shard, so that they
// stay in place. Close must be called soon: writers wait for it, and readers wait for
// writers.
type View struct {
	shard *shard
	found [kinds]uint32
}

// View looks a key up.
func (s *Store) View(key wire.Key) View {
	sh, hash := s.shardOf(key)
	v := View{shard: sh}
	sh.mu.RLock()
	sh.find(hash, key, &v.found)
	return v
}

// Record returns the record of the kind, or nil. It must not be used after
// Close.
func (v *View) Record(k Kind) *Record {
	if off := v.found[k]; off != none {
		return v.shard.at(off)
	}
	return nil
}

// Close unlocks the shard.
func (v *View) Close() { v.shard.mu.RUnlock() }

// Put stores an entry. It replaces the record with the same key and kind. It reports false
// if the answer is too large for the store, or if the store is closed.
func (s *Store) Put(key wire.Key, kind Kind, e *Entry) (gone Evicted, ok bool) {
	if len(key) > wire.MaxKey || len(e.Answer.Body) > 1<<16-1 || len(e.Wildcard) > 255 {
		return gone, false
	}
	sh, hash := s.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if s.closed.Load() {
		return gone, false
	}
	defer s.recount(sh)()
	ok = sh.put(hash, key, kind, e, &gone)
	return gone, ok
}

// recount returns a function that adds the changes in the shard since the call of recount
// to the totals.
func (s *Store) recount(sh *shard) func() {
	before := [classes]int{sh.count(0), sh.count(1)}
	return func() {
		for c := range before {
			s.entry[c].Add(int64(sh.count(c) - before[c]))
		}
	}
}

// Remove removes the record with the key and kind, if there is one.
func (s *Store) Remove(key wire.Key, kind Kind) {
	sh, hash := s.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	defer s.recount(sh)()
	var found [kinds]uint32
	sh.find(hash, key, &found)
	if found[kind] != none {
		sh.remove(found[kind])
	}
}

// RemoveIf removes the records for which match returns true. match is called under the
// lock of a shard, and must not keep the key or the record.
func (s *Store) RemoveIf(match func(key wire.Key, r *Record) bool) {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		done := s.recount(sh)
		if len(sh.index.slots) > 0 {
			sh.ring.each(func(off uint32) {
				if r := sh.at(off); match(r.key(), r) {
					sh.remove(off)
				}
			})
		}
		done()
		sh.mu.Unlock()
	}
}

// Retain turns the positive record with the key into the retained one, if it answers its
// question. Otherwise the retained record stays as it is.
func (s *Store) Retain(key wire.Key) {
	sh, hash := s.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	defer s.recount(sh)()
	var found [kinds]uint32
	sh.find(hash, key, &found)
	if found[Positive] == none || !sh.at(found[Positive]).answering {
		return
	}
	if found[Retained] != none {
		sh.remove(found[Retained])
	}
	sh.changing(sh.at(found[Positive]))
	sh.at(found[Positive]).kind = Retained
	sh.counts[Positive]--
	sh.counts[Retained]++
}

// Retry forbids refreshes of the record before the time at, or allows them at once if at is
// 0.
func (s *Store) Retry(key wire.Key, kind Kind, at Time) {
	v := s.View(key)
	defer v.Close()
	if r := v.Record(kind); r != nil {
		if at == 0 {
			r.retry.Store(0)
		} else {
			r.retry.Store(at.millis())
		}
	}
}

// SetMark changes the mark of a record, if the record with the key and kind has the mark
// from.
func (s *Store) SetMark(key wire.Key, kind Kind, from, to uint8) {
	sh, hash := s.shardOf(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	var found [kinds]uint32
	sh.find(hash, key, &found)
	if off := found[kind]; off != none && sh.at(off).mark == from {
		sh.at(off).mark = to
	}
}

// Sweep removes expired records.
func (s *Store) Sweep(now Time) (gone Evicted) {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		done := s.recount(sh)
		sh.reclaim(now, &gone)
		done()
		sh.mu.Unlock()
	}
	return gone
}

// OnWithdraw has fn called before an answer changes or goes that was announced to fast
// paths (Record.Announce), and before another answer to its question comes. fn is
// called under the lock of a shard: it must not wait, nor keep the key. It must be set
// before the first answer is announced.
func (s *Store) OnWithdraw(fn func(key wire.Key)) {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		sh.withdraw = func(key []byte) { fn(key) }
		sh.mu.Unlock()
	}
}

// Range calls fn for every record, under the read lock of its shard. fn must not keep the
// key or the record.
func (s *Store) Range(fn func(key wire.Key, r *Record)) {
	for i := range s.shards {
		s.RangeShard(i, fn)
	}
}

// Shards is the number of parts of the store, each with a lock of its own.
func (s *Store) Shards() int { return len(s.shards) }

// RangeShard is Range for one part of the store, from the oldest record to the newest.
func (s *Store) RangeShard(i int, fn func(key wire.Key, r *Record)) {
	sh := &s.shards[i]
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	if len(sh.index.slots) == 0 {
		return
	}
	sh.ring.each(func(off uint32) {
		r := sh.at(off)
		fn(r.key(), r)
	})
}

// Len returns the number of answers of the kind. Positive includes Retained.
func (s *Store) Len(k Kind) int { return int(s.entry[k.class()].Load()) }

// Bytes returns the memory in use: the parts of the rings that were written so far, and
// the tables, and what the caller uses itself.
func (s *Store) Bytes() int {
	n := s.beside
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.RLock()
		n += int(sh.ring.high) + 4*(len(sh.index.slots)+len(sh.ghosts.slots))
		sh.mu.RUnlock()
	}
	return n
}

// Close empties the store and releases its memory. Afterwards it finds and stores nothing.
func (s *Store) Close() {
	if s.closed.Swap(true) {
		return
	}
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		done := s.recount(sh)
		stale := time.Duration(sh.stale)
		if sh.withdraw != nil && len(sh.index.slots) > 0 {
			sh.ring.each(func(off uint32) { sh.changing(sh.at(off)) })
		}
		sh.index, sh.ghosts, sh.counts = index{}, ghosts{}, [kinds]int{}
		sh.init(sh.ring.mem, sh.limits, stale)
		done()
		sh.mu.Unlock()
	}
	discard(s.mem)
	runtime.KeepAlive(s)
}

// Epoch returns the time from which Time counts.
func (s *Store) Epoch() time.Time { return s.epoch }
