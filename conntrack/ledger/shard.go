package ledger

import (
	"math/bits"
	"sync/atomic"
	"unsafe"
)

// shards is the number of tables over which the flows are spread, so that long work is done
// on a small part at a time.
const shards = 64

// slot is one entry. It has 56 bits of the hash of the tuple. Two live flows with the same
// bits in the same shard occur once in about 10^13 flows.
type slot struct {
	key      uint64 // hash of the tuple, with the state in its low byte; 0: empty slot
	expires  uint32 // in milliseconds of the ledger's age; wraps
	streamAt uint32 // stream_ts, in the same unit
}

// stateMask has the bits of a key that are not part of the hash.
const stateMask = 0xff

// Different bits of a hash choose the shard, the place in it, and the sample.
func shardOf(h uint64) uint64    { return h >> 58 }
func placeBits(h uint64) uint32  { return uint32(h >> 26) }
func sampleBits(h uint64) uint32 { return uint32(h >> 8) }

// maxHalvings limits the sampling rate to 2^-18, at which 4 MB hold the sample of forty
// thousand million flows.
const maxHalvings = 18

// shard is a hash table with linear probing. Expired entries stay in place until their tuple
// returns or a sweep removes them.
type shard struct {
	slots []slot
	used  int   // slots that are not empty
	tidy  int64 // when to sweep next, in milliseconds of the ledger's age

	// One flow in 2^halvings is kept: the flows whose lowest sample bits are zero. One
	// in 2^counted is counted, with weight 2^counted. The two numbers differ only
	// while the sample grows. Flows that began before are kept from their next packet
	// on, so the larger sample is complete at completeAt, when all of them have been
	// seen or have expired.
	halvings, counted uint32
	completeAt        int64

	unwanted *atomic.Uint32  // mask(halvings)
	created  [classes]uint64 // entries ever made, estimated
}

// tidyEvery is the longest time in milliseconds between two sweeps of a shard that is used.
// It must be far less than 24 days, the range in which expiries can be compared.
const tidyEvery = 30_000

// slotsPerShard divides the memory of a ledger among its shards.
func slotsPerShard(bytes int) int {
	const page = 8192 // the allocator rounds each of the two objects up to it
	return (bytes - int(unsafe.Sizeof(Ledger{})) - 2*page) / shards / int(unsafe.Sizeof(slot{}))
}

// mask has the sample bits that are zero in one of 2^halvings flows.
func mask(halvings uint32) uint32 { return 1<<halvings - 1 }

// limit returns how many slots may be used. It keeps probing short.
func (s *shard) limit() int { return len(s.slots) * 4 / 5 }

// note applies packets of a flow to its entry. It makes the entry if there is none.
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

// count adds a new entry to created, with its weight.
func (s *shard) count(h uint64, class class) {
	if sampleBits(h)&mask(s.counted) == 0 {
		s.created[class.index()] += 1 << s.counted
	}
}

// find returns the slot of a flow, or the empty slot for it.
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

// place returns the index at which probing for a hash begins.
func (s *shard) place(h uint64) int {
	hi, _ := bits.Mul32(placeBits(h), uint32(len(s.slots)))
	return int(hi)
}
