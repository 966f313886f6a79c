package store

import (
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// Kind tells the answers to one question apart, of which there can be one of
// each kind.
type Kind uint8

const (
	// Positive is an answer with RCODE NOERROR that is no denial.
	Positive Kind = iota
	// Negative is a denial (NXDOMAIN, NODATA) or a cached failure.
	Negative
	// Retained is a positive answer that was replaced by a response that does
	// not answer the question, kept to be served instead of it.
	Retained

	kinds
)

// class is the kind as far as limits and eviction go: Retained is Positive.
func (k Kind) class() int { return int(k & 1) }

const classes = 2

// Where a record is.
const (
	stateHole  = iota // removed, or filler before the end of the ring
	stateSmall        // in the queue of new records
	stateMain         // in the queue of records that were used
)

// word is the unit of record sizes and offsets, in octets.
const word = 8

// none is the offset that is no record's.
const none = ^uint32(0)

// Record is the head of an answer in the ring; key, body, TTL offsets and the
// wildcard name follow it. Its fields are stable while the shard is locked,
// for reading or exclusively. The fields that readers change are atomic.
//
// The first word must hold what a hole needs, since a hole can be that small.
type Record struct {
	words uint16
	state uint8
	kind  Kind
	hash  uint32

	newer, older uint32 // neighbours in the queue: offsets, or none

	stored      int64 // nanoseconds since the store's epoch
	ttl         uint32
	flags       wire.Flags
	keyLen      uint16
	bodyLen     uint16
	ttlsLen     uint16
	counts      [3]uint16
	wildcardLen uint8
	answering   bool

	freq  atomic.Uint32 // uses since it was last looked at for eviction, at most MaxUses
	hits  atomic.Uint32 // uses in a row, for prefetch and for whoever publishes popular answers
	seen  atomic.Uint32 // last use that counted in hits, milliseconds since epoch
	retry atomic.Uint32 // not to be refreshed before, milliseconds since epoch; 0: at any time

	source uint16 // in what would be padding
	forAll bool
}

const headSize = uint32(unsafe.Sizeof(Record{}))

// MaxUses bounds the count of uses: enough to tell popular from used once or
// twice, and after three hits a record is only read.
const MaxUses = 3

func recordAt(mem []byte, off uint32) *Record { return (*Record)(unsafe.Pointer(&mem[off])) }

func (r *Record) size() uint32 { return uint32(r.words) * word }

// data returns the n octets at off after the head.
func (r *Record) data(off, n int) []byte {
	return unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(r), int(headSize)+off)), n)
}

func (r *Record) key() []byte { return r.data(0, int(r.keyLen)) }

// Kind is the kind of answer.
func (r *Record) Kind() Kind { return r.kind }

// TTL is the time to live that the answer had when it was stored, in seconds.
func (r *Record) TTL() uint32 { return r.ttl }

// Stored is when it was stored.
func (r *Record) Stored() Time { return Time(r.stored) }

// Left returns the seconds left to live: zero or negative for an expired
// answer. A second that has begun is counted whole.
func (r *Record) Left(now Time) int64 {
	return int64(r.ttl) - (int64(now)-r.stored)/int64(time.Second)
}

// Answering reports whether the answer has records that answer its question.
func (r *Record) Answering() bool { return r.answering }

// ForAll reports whether the answer is the same for the clients of all networks.
func (r *Record) ForAll() bool { return r.forAll }

// Answer returns the packed answer. It refers to the ring and must be copied
// before the shard is unlocked.
func (r *Record) Answer() wire.Answer {
	off := int(r.keyLen)
	return wire.Answer{
		Flags:  r.flags,
		Counts: r.counts,
		Body:   r.data(off, int(r.bodyLen)),
		TTLs:   r.data(off+int(r.bodyLen), int(r.ttlsLen)),
	}
}

// Source is where the answer came from, by what number its owner gave that.
func (r *Record) Source() uint16 { return r.source }

// Uses tells how often the answer was used since it was last looked at for
// eviction. From MaxUses on it is not counted.
func (r *Record) Uses() uint32 { return r.freq.Load() }

// Flags are the header bits of the answer.
func (r *Record) Flags() wire.Flags { return r.flags }

// Wildcard is the wildcard owner name the answer was made from, if any
// (CoreDNS's metadata zone/wildcard). It is a copy.
func (r *Record) Wildcard() string {
	if r.wildcardLen == 0 {
		return ""
	}
	return string(r.data(int(r.keyLen)+int(r.bodyLen)+int(r.ttlsLen), int(r.wildcardLen)))
}

// Touch tells the eviction policy that the answer was used.
func (r *Record) Touch() {
	if f := r.freq.Load(); f < MaxUses {
		r.freq.Store(f + 1)
	}
}

// Count counts a use for prefetch and returns the number of uses with no gap
// longer than gap between them, this one included.
func (r *Record) Count(now Time, gap time.Duration) uint32 {
	t := now.millis()
	last := r.seen.Swap(t)
	if time.Duration(int32(t-last))*time.Millisecond > gap {
		r.hits.Store(1)
		return 1
	}
	return r.hits.Add(1)
}

// Hits is the number that Count last returned.
func (r *Record) Hits() uint32 { return r.hits.Load() }

// Retry reports whether a refresh may start now, given failures before.
func (r *Record) Retry(now Time) bool {
	at := r.retry.Load()
	return at == 0 || int32(now.millis()-at) >= 0
}

// size of a record with this content, in octets.
func recordSize(keyLen int, e *Entry) uint32 {
	n := int(headSize) + keyLen + len(e.Answer.Body) + len(e.Answer.TTLs) + len(e.Wildcard)
	return uint32(n+word-1) &^ (word - 1)
}

// Time is nanoseconds since the epoch of a store, on the monotonic clock.
type Time int64

// millis is the time in milliseconds, plus one so that 0 can mean never. It
// wraps after 49 days: only differences mean something.
func (t Time) millis() uint32 { return uint32(int64(t)/int64(time.Millisecond)) + 1 }
