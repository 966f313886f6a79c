package ledger

import (
	"math/bits"
	"sync/atomic"
	"unsafe"
)

// shards is the number of tables that the flows are spread over, so that what
// takes long is done to a small part at a time.
const shards = 64

// slot is one entry. What it keeps of the tuple is 56 bits of its hash; that two
// flows alive share them and the shard happens once in some 10^13 flows.
type slot struct {
	key      uint64 // hash of the tuple, its low byte the state; 0 is an empty slot
	expires  uint32 // in milliseconds of the ledger's age, wrapping
	streamAt uint32 // stream_ts, likewise
}

// stateMask are the bits of a key that are not of the hash.
const stateMask = 0xff

// Different bits of a hash choose the shard, the place in it, and the sample.
func shardOf(h uint64) uint64    { return h >> 58 }
func placeBits(h uint64) uint32  { return uint32(h >> 26) }
func sampleBits(h uint64) uint32 { return uint32(h >> 8) }

// maxHalvings bounds the sampling rate to 2^-18, at which 4 MB are the sample of
// forty thousand million flows.
const maxHalvings = 18

// shard is a hash table with linear probing. Entries that expired stay where they
// are until their tuple returns or a sweep takes them away.
type shard struct {
	slots []slot
	used  int   // slots that are not empty
	tidy  int64 // when to sweep next, in milliseconds of the ledger's age

	// halvings is k where one flow in 2^k is kept: those whose lowest k sample
	// bits are zero. Of these, one in 2^counted is counted, with that weight.
	// The two differ only while the sample grows: flows that began before it
	// grew are kept from their next packet on, so the larger sample is not
	// complete until completeAt, when all of them have been seen or expired.
	halvings, counted uint32
	completeAt        int64

	unwanted *atomic.Uint32  // mask(halvings)
	created  [classes]uint64 // entries ever made, estimated
}

// tidyEvery is the longest time in milliseconds between two sweeps of a shard in
// use. It must be far less than the 24 days over which expiries can be compared.
const tidyEvery = 30_000

// slotsPerShard divides the memory of a ledger among its shards.
func slotsPerShard(bytes int) int {
	const page = 8192 // the allocator rounds up to it, once for each of two objects
	return (bytes - int(unsafe.Sizeof(Ledger{})) - 2*page) / shards / int(unsafe.Sizeof(slot{}))
}

// mask selects the sample bits that are zero in one of 2^halvings flows.
func mask(halvings uint32) uint32 { return 1<<halvings - 1 }

// limit is the number of slots that may be in use: probing stays short.
func (s *shard) limit() int { return len(s.slots) * 4 / 5 }

// note applies what was seen of a flow to its entry, which it makes if need be.
func (s *shard) note(h uint64, class class, now int64, p packet, t *timeouts) {
	if now >= s.tidy {
		s.tend(now, t)
	}
	if sampleBits(h)&mask(s.halvings) != 0 {
		return // the sample was halved since the packet was noted
	}
	e := s.find(h)
	if e.key != 0 {
		if e.apply(p, e.alive(uint32(now)), uint32(now), t) {
			s.count(h, class)
		}
		return
	}
	if s.used >= s.limit() {
		if s.makeRoom(now); s.used < s.limit() {
			s.note(h, class, now, p, t)
		}
		return
	}
	e.key = h&^stateMask | uint64(class)
	if !e.apply(p, false, uint32(now), t) {
		*e = slot{}
		return
	}
	s.used++
	s.count(h, class)
}

// count adds a new entry, and those it stands for, to the entries ever made.
func (s *shard) count(h uint64, class class) {
	if sampleBits(h)&mask(s.counted) == 0 {
		s.created[class.index()] += 1 << s.counted
	}
}

// find returns the slot of a flow, or the empty one where it belongs.
func (s *shard) find(h uint64) *slot {
	i := s.place(h)
	for {
		e := &s.slots[i]
		if e.key == 0 || (e.key^h)&^stateMask == 0 {
			return e
		}
		if i++; i == len(s.slots) {
			i = 0
		}
	}
}

// place is where the probing for a hash begins.
func (s *shard) place(h uint64) int {
	hi, _ := bits.Mul32(placeBits(h), uint32(len(s.slots)))
	return int(hi)
}
