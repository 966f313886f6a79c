package kernel

import (
	"encoding/binary"
	"math/bits"

	"github.com/trackless-dns/trackless/fastpath"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// The layout of bpf/answer.c.
const (
	unitSize   = 64
	ways       = 8
	bucketSize = 8 * ways
	headName   = 24 // bytes of the name in the first unit
	moreName   = 40 // and in the second

	// MaxName is the longest question name that a record holds, in bytes of wire format.
	MaxName = 128
	// MaxBody is the longest body of an answer that a record holds, in bytes.
	MaxBody = 512
	// MaxRecords is the most resource records that an answer in a record has.
	MaxRecords = 12
	// Listeners is the number of listen addresses.
	Listeners = 128
	// Classes is the most classes by which hits are counted.
	Classes = 512

	firstClass = 16
	variants   = 4
	maxUnits   = 3 + MaxBody/unitSize
)

// Offsets in the first unit.
const (
	atStored  = 0
	atTTL     = 8
	atServe   = 12
	atFlags   = 16
	atCounts  = 18
	atType    = 24
	atNameLen = 26
	atKey     = 27
	atBodyLen = 28
	atClass   = 30
	atSum     = 32
	atTTLs    = 34
	atOddTTLs = 35
	atHits    = 36
	atName    = 40
)

// fits reports whether the program can hold the record.
func fits(r *fastpath.Record) bool {
	return len(r.Key.Name()) <= MaxName && r.Key.Class() == 1 && r.Key.Bits()&^wire.DO == 0 &&
		len(r.Answer.Body) <= MaxBody && len(r.Answer.TTLs) <= 2*MaxRecords &&
		r.Listener < Listeners && r.Class < Classes && r.Serve <= r.TTL
}

// unitsOf returns how many units the record takes.
func unitsOf(r *fastpath.Record) int {
	n := 2 + (len(r.Answer.Body)+unitSize-1)/unitSize
	if len(r.Key.Name()) > headName+moreName {
		n++
	}
	return n
}

// keyByte is the part of a question that is not name and type.
func keyByte(listener uint8, key wire.Key) byte { return listener<<1 | byte(key.Bits()&wire.DO) }

// put writes the record to b, which has its number of units.
func put(b []byte, r *fastpath.Record) {
	clear(b)
	name, a := r.Key.Name(), &r.Answer
	binary.LittleEndian.PutUint64(b[atStored:], monotonic(r.Stored))
	binary.LittleEndian.PutUint32(b[atTTL:], r.TTL)
	binary.LittleEndian.PutUint32(b[atServe:], r.Serve)
	binary.BigEndian.PutUint16(b[atFlags:], uint16(a.Flags))
	for i, n := range a.Counts {
		binary.BigEndian.PutUint16(b[atCounts+2*i:], n)
	}
	binary.BigEndian.PutUint16(b[atType:], r.Key.Type())
	b[atNameLen] = byte(len(name))
	b[atKey] = keyByte(r.Listener, r.Key)
	binary.LittleEndian.PutUint16(b[atBodyLen:], uint16(len(a.Body)))
	binary.LittleEndian.PutUint16(b[atClass:], r.Class)
	b[atTTLs] = byte(len(a.TTLs) / 2)

	at := copy(b[atName:unitSize], name)
	second := b[unitSize : 2*unitSize]
	copy(second, a.TTLs)
	at += copy(second[2*MaxRecords:], name[at:])
	body := b[2*unitSize:]
	if len(name) > at {
		copy(body[:unitSize], name[at:])
		body = body[unitSize:]
	}
	copy(body, a.Body)
	for ttls := a.TTLs; len(ttls) >= 2; ttls = ttls[2:] {
		offset := binary.LittleEndian.Uint16(ttls)
		clear(body[offset:][:4])
		b[atOddTTLs] += byte(offset & 1)
	}
	binary.LittleEndian.PutUint16(b[atSum:], sum(body))
}

// sum is the Internet checksum's sum (RFC 1071) of b, in the byte order of the
// program's loads.
func sum(b []byte) uint16 {
	var s uint32
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.LittleEndian.Uint16(b))
	}
	if len(b) > 0 {
		s += uint32(b[0])
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// place is where the slots of a question are.
type place struct {
	tag           uint32
	first, second uint32
}

// where computes the place, as lookup of the program does.
func where(seed uint64, name []byte, qtype uint16, key byte, mask uint32) place {
	h := seed ^ uint64(len(name))
	var word [8]byte
	for len(name) > 0 {
		clear(word[:])
		name = name[copy(word[:], name):]
		h = mix(h, binary.LittleEndian.Uint64(word[:]))
	}
	h = mix(h, uint64(bits.ReverseBytes16(qtype))<<8|uint64(key))
	h *= 0xff51afd7ed558ccd
	h ^= h >> 32
	tag := uint32(h>>40) | 1
	first := uint32(h) & mask
	return place{tag, first, (first ^ tag*0x5bd1e995) & mask}
}

func mix(h, w uint64) uint64 {
	h = (h ^ w) * 0x9e3779b97f4a7c15
	return h ^ h>>29
}
