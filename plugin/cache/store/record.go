package store

import (
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// Kind is a kind of answer. The store holds one answer of each kind to a question.
type Kind uint8

const (
	// Positive is an answer with RCODE NOERROR that is no denial.
	Positive Kind = iota
	// Negative is a denial (NXDOMAIN, NODATA) or a cached failure.
	Negative
	// Retained is a positive answer that was replaced by a response that does not
	// answer the question. It is kept to be served instead of that response.
	Retained

	kinds
)

// class is the kind for limits and eviction, where Retained counts as Positive.
func (k Kind) class() int { return int(k & 1) }

const classes = 2

// The states of a record.
const (
	stateHole  = iota // removed, or free space before the end of the ring
	stateSmall        // in the queue of new records
	stateMain         // in the queue of records that were used
)

// word is the unit of record sizes and offsets, in bytes.
const word = 8

// none is an offset that no record has.
const none = ^uint32(0)

// Record is the head of an answer in the ring. Key, body, TTL offsets and the wildcard
// name follow it. Its fields do not change while the shard is locked, for reading or
// exclusively, except for the atomic ones, which readers change.
//
// All that a hole needs is in the first word, since a hole can be that small.
type Record struct {
	words uint16
	state uint8
	kind  Kind
	hash  uint32

	newer, older uint32 // offsets of the neighbours in the queue, or none

	stored      int64 // nanoseconds since the store's epoch
	ttl         uint32
	flags       wire.Flags
	keyLen      uint16
	bodyLen     uint16
	ttlsLen     uint16
	counts      [3]uint16
	wildcardLen uint8
	answering   bool

	freq  atomic.Uint32 // useBits: uses since eviction last considered it; announcedBits
	hits  atomic.Uint32 // uses in a row, for prefetch
	seen  atomic.Uint32 // the last use that hits counts, milliseconds since epoch
	retry atomic.Uint32 // no refresh before, milliseconds since epoch; 0: at any time

	source uint16 // here, it takes no more than padding would
	forAll bool
	mark   uint8
}

const headSize = uint32(unsafe.Sizeof(Record{}))

// MaxUses is the highest count of uses. It is enough to tell popular answers from answers
// that are used once or twice, and after three hits a record is only read.
const MaxUses = 3

func recordAt(mem []byte, off uint32) *Record { return (*Record)(unsafe.Pointer(&mem[off])) }

func (r *Record) size() uint32 { return uint32(r.words) * word }

// data returns n bytes, from off bytes after the head on.
func (r *Record) data(off, n int) []byte {
	return unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(r), int(headSize)+off)), n)
}

func (r *Record) key() []byte { return r.data(0, int(r.keyLen)) }

// Kind returns the kind of the answer.
func (r *Record) Kind() Kind { return r.kind }

// TTL returns the time to live that the answer had when it was stored, in seconds.
func (r *Record) TTL() uint32 { return r.ttl }

// Stored returns the time at which the answer was stored.
func (r *Record) Stored() Time { return Time(r.stored) }

// Left returns the seconds left to live, zero or negative for an expired answer. A second
// that has begun counts as a whole one.
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

// Source returns the number of the upstream, as Entry.Source gave it.
func (r *Record) Source() uint16 { return r.source }

// Mark returns the byte that Entry.Mark or Store.SetMark gave.
func (r *Record) Mark() uint8 { return r.mark }

// Uses returns how often the answer was used since eviction last considered it, at most
// MaxUses.
func (r *Record) Uses() uint32 { return min(r.freq.Load()&useBits, MaxUses) }

// setUses sets the number that Uses returns. The shard is locked exclusively.
func (r *Record) setUses(n uint32) { r.freq.Store(r.freq.Load()&announcedBits | n) }

// Flags returns the header bits of the answer.
func (r *Record) Flags() wire.Flags { return r.flags }

// Wildcard returns a copy of the wildcard owner name from which the answer was made, if any
// (CoreDNS's metadata zone/wildcard).
func (r *Record) Wildcard() string {
	if r.wildcardLen == 0 {
		return ""
	}
	return string(r.data(int(r.keyLen)+int(r.bodyLen)+int(r.ttlsLen), int(r.wildcardLen)))
}

// Touch counts a use for eviction.
func (r *Record) Touch() {
	if f := r.freq.Load(); f&useBits < MaxUses {
		r.freq.Add(1)
	}
}

// Count counts a use for prefetch. It returns the number of uses up to this one that are
// no more than gap apart.
func (r *Record) Count(now Time, gap time.Duration) uint32 {
	t := now.millis()
	last := r.seen.Swap(t)
	if time.Duration(int32(t-last))*time.Millisecond > gap {
		r.hits.Store(1)
		return 1
	}
	return r.hits.Add(1)
}

// Hits returns the number that Count last returned.
func (r *Record) Hits() uint32 { return r.hits.Load() }

// CountMore counts n uses more than Count.
func (r *Record) CountMore(n uint32) { r.hits.Add(n) }

// The bits of freq. Readers change the first, and the others without losing each
// other's changes. A few readers at once may count more than MaxUses.
const (
	useBits       = 1<<16 - 1
	announcedBits = ^uint32(useBits) // the second in which fast paths were told; 0: they do not have the answer
)

// Announced reports whether fast paths were told of the answer in this second.
func (r *Record) Announced(now Time) bool { return r.freq.Load()&announcedBits == now.announced() }

// Announce notes that fast paths are told of the answer now. When it changes or goes,
// the function of OnWithdraw is called.
func (r *Record) Announce(now Time) {
	for f := r.freq.Load(); !r.freq.CompareAndSwap(f, f&useBits|now.announced()); f = r.freq.Load() {
	}
}

// announced returns the second as announcedBits. It repeats after 18 hours.
func (t Time) announced() uint32 { return (uint32(int64(t)/int64(time.Second)%(1<<16-1)) + 1) << 16 }

// Retry reports whether a refresh may start now: none has failed shortly before.
func (r *Record) Retry(now Time) bool {
	at := r.retry.Load()
	return at == 0 || int32(now.millis()-at) >= 0
}

// recordSize returns the size of a record with this content, in bytes.
func recordSize(keyLen int, e *Entry) uint32 {
	n := int(headSize) + keyLen + len(e.Answer.Body) + len(e.Answer.TTLs) + len(e.Wildcard)
	return uint32(n+word-1) &^ (word - 1)
}

// Time is nanoseconds since the epoch of a store, on the monotonic clock.
type Time int64

// millis returns the time in milliseconds, plus one, so that 0 can mean never. It wraps
// after 49 days, so only differences are meaningful.
func (t Time) millis() uint32 { return uint32(int64(t)/int64(time.Millisecond)) + 1 }
