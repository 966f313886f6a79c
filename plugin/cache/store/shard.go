package store

import (
	"bytes"
	"sync"
	"time"
)

// shard is a part of the store with a lock of its own.
type shard struct {
	mu     sync.RWMutex
	ring   ring
	index  index
	ghosts ghosts
	queues [classes][2]queue // small, main
	counts [kinds]int
	limits [classes]int // numbers of records; 0: only the ring limits
	stale  Time         // how long expired records are kept

	soonest Time // no record expires before
	swept   Time

	withdraw func(key []byte) // see Store.OnWithdraw
	_        [64]byte         // keeps the lock of the next shard off this cache line
}

func (s *shard) init(mem []byte, limits [classes]int, stale time.Duration) {
	s.ring = ring{mem: mem}
	s.limits = limits
	s.stale = Time(stale)
	s.soonest = forever
	for c := range s.queues {
		s.queues[c][0].reset()
		s.queues[c][1].reset()
	}
}

const forever = Time(1<<63 - 1)

func (s *shard) at(off uint32) *Record    { return recordAt(s.ring.mem, off) }
func (s *shard) hashAt(off uint32) uint32 { return s.at(off).hash }
func (s *shard) queueOf(r *Record) *queue { return &s.queues[r.kind.class()][r.state-stateSmall] }
func (s *shard) count(class int) int      { return s.queues[class][0].count + s.queues[class][1].count }
func (s *shard) expires(r *Record) Time {
	return Time(r.stored) + Time(r.ttl)*Time(time.Second) + s.stale
}
func (s *shard) expired(r *Record, t Time) bool { return t >= s.expires(r) }

// find sets found to the offsets of the records with this key, by kind.
func (s *shard) find(hash uint32, key []byte, found *[kinds]uint32) {
	*found = [kinds]uint32{none, none, none}
	if len(s.index.slots) == 0 {
		return
	}
	slots := s.index.slots
	mask := uint32(len(slots) - 1)
	for i := hash & mask; slots[i] != 0; i = (i + 1) & mask {
		slot := slots[i]
		if (slot^hash)&^offMask != 0 {
			continue
		}
		off := slotOffset(slot)
		r := s.at(off)
		if r.hash == hash && bytes.Equal(r.key(), key) {
			found[r.kind] = off
		}
	}
}

// put stores e. It replaces a record of the same key and kind.
func (s *shard) put(hash uint32, key []byte, kind Kind, e *Entry, gone *Evicted) bool {
	now := e.Stored
	s.reclaim(now, gone)
	size := recordSize(len(key), e)
	var found [kinds]uint32
	s.find(hash, key, &found)
	for _, off := range found {
		if off != none {
			s.changing(s.at(off))
		}
	}
	hits := e.Hits
	if e.Refresh && found[e.Of] != none {
		hits = s.at(found[e.Of]).hits.Load()
	}
	state, freq := uint8(0), uint32(0)
	if old := found[kind]; old != none {
		r := s.at(old)
		if r.size() == size {
			s.fill(r, key, kind, e, hits)
			return true
		}
		state, freq = r.state, r.Uses()
		s.remove(old)
	}
	if !s.makeRoom(kind.class(), size, now, gone) {
		return false
	}
	off := s.ring.alloc(size, s.moved)
	if off == none {
		return false
	}
	if state == 0 {
		state = stateSmall
		if s.ghosts.take(hash, s.index.count) {
			state = stateMain
		}
	}
	if e.History.Proven {
		state = stateMain
	}
	freq = max(freq, min(e.History.Uses, MaxUses))
	r := s.at(off)
	*(*[headSize]byte)(s.ring.mem[off:]) = [headSize]byte{}
	r.words, r.state, r.hash = uint16(size/word), state, hash
	r.setUses(freq)
	s.fill(r, key, kind, e, hits)
	before := len(s.index.slots)
	s.index.insert(hash, off, s.hashAt)
	if len(s.index.slots) != before {
		s.ghosts.resize(len(s.index.slots))
	}
	s.counts[kind]++
	s.queueOf(r).push(s.ring.mem, off)
	return true
}

// fill writes the content of a record. The record must have the right size.
func (s *shard) fill(r *Record, key []byte, kind Kind, e *Entry, hits uint32) {
	r.kind = kind
	r.stored, r.ttl = int64(e.Stored), e.TTL
	r.flags, r.counts, r.answering, r.forAll = e.Answer.Flags, e.Answer.Counts, e.Answering, e.ForAll
	r.source, r.mark = e.Source, e.Mark
	r.hits.Store(hits)
	r.seen.Store(e.Seen.millis())
	r.retry.Store(0)
	if e.History.Retry != 0 {
		r.retry.Store(e.History.Retry.millis())
	}
	r.keyLen, r.bodyLen = uint16(len(key)), uint16(len(e.Answer.Body))
	r.ttlsLen, r.wildcardLen = uint16(len(e.Answer.TTLs)), uint8(len(e.Wildcard))
	b := r.data(0, int(r.size()-headSize))
	b = b[copy(b, key):]
	b = b[copy(b, e.Answer.Body):]
	b = b[copy(b, e.Answer.TTLs):]
	copy(b, e.Wildcard)
	s.soonest = min(s.soonest, s.expires(r))
}

// makeRoom evicts until a record of the class and size fits.
func (s *shard) makeRoom(class int, size uint32, now Time, gone *Evicted) bool {
	for s.limits[class] > 0 && s.count(class) >= s.limits[class] {
		s.evict(class, now, gone)
	}
	for !s.ring.room(size) {
		if s.index.count == 0 {
			return false
		}
		s.evict(s.largest(), now, gone)
	}
	return true
}

// largest returns the class from which to evict: the one with more bytes of new records,
// so that a flood of names of one class evicts itself first.
func (s *shard) largest() int {
	positive, negative := &s.queues[0], &s.queues[1]
	switch {
	case s.count(0) == 0:
		return 1
	case s.count(1) == 0:
		return 0
	case negative[0].bytes > positive[0].bytes:
		return 1
	}
	return 0
}

// evict removes a record of the class by S3-FIFO. A record at the end of the small queue
// goes to the main queue if it was used at all, and is removed if not. A record stays in
// the main queue for as many rounds as it was used. Records leave the small queue first
// while it has more than a tenth of the bytes.
func (s *shard) evict(class int, now Time, gone *Evicted) {
	mem := s.ring.mem
	small, large := &s.queues[class][0], &s.queues[class][1]
	for {
		fromSmall := large.count == 0 || small.count > 0 && uint64(small.bytes)*10 > uint64(small.bytes)+uint64(large.bytes)
		q := large
		if fromSmall {
			q = small
		}
		off := q.oldest
		r := s.at(off)
		freq := r.Uses()
		if s.expired(r, now) {
			gone.Expired++
			s.remove(off)
			return
		}
		if freq == 0 {
			if fromSmall {
				s.ghosts.add(r.hash)
			}
			gone.Live[class]++
			s.remove(off)
			return
		}
		q.remove(mem, off)
		if fromSmall {
			freq = 1
			r.state = stateMain
		}
		r.setUses(freq - 1)
		large.push(mem, off)
	}
}

// changing withdraws an answer from fast paths.
func (s *shard) changing(r *Record) {
	if r.freq.Load()&announcedBits != 0 {
		r.freq.And(useBits)
		s.withdraw(r.key())
	}
}

// remove removes a record from its queue, the index and the ring.
func (s *shard) remove(off uint32) {
	r := s.at(off)
	s.changing(r)
	s.queueOf(r).remove(s.ring.mem, off)
	s.counts[r.kind]--
	s.index.remove(r.hash, off, s.hashAt)
	s.ring.free(off)
}

// moved updates index and queue after the ring has moved a record.
func (s *shard) moved(from, to uint32) {
	r := s.at(to)
	s.index.move(r.hash, from, to)
	s.queueOf(r).moved(s.ring.mem, to)
}

// reclaim removes expired records, at most once a second.
func (s *shard) reclaim(now Time, gone *Evicted) {
	if now < s.soonest || now < s.swept+Time(time.Second) {
		return
	}
	s.swept, s.soonest = now, forever
	s.ring.each(func(off uint32) {
		if r := s.at(off); s.expired(r, now) {
			gone.Expired++
			s.remove(off)
		} else {
			s.soonest = min(s.soonest, s.expires(r))
		}
	})
}
