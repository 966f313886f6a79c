package wire

import "encoding/binary"

// Flags are the header bits of a cached answer: AA, RA, AD and the RCODE, at
// their places in the second 16 bits of the header.
type Flags uint16

// Rcode is the response code, 0 to 15.
func (f Flags) Rcode() int { return int(f & flagRcode) }

// Authoritative is the AA bit.
func (f Flags) Authoritative() bool { return f&flagAA != 0 }

// AuthenticData is the AD bit.
func (f Flags) AuthenticData() bool { return f&flagAD != 0 }

// RecursionAvailable is the RA bit.
func (f Flags) RecursionAvailable() bool { return f&flagRA != 0 }

// Answer is a packed answer without header, question and OPT record.
type Answer struct {
	Flags Flags
	// Counts are the numbers of records in the answer, authority and
	// additional sections.
	Counts [3]uint16
	// Body are the packed records. Compression pointers in it count from the
	// start of a message that has a question name as long as the key's.
	Body []byte
	// TTLs are the offsets of the TTL fields in Body, in ascending order. Each takes two
	// bytes, the least significant first.
	TTLs []byte
}

// setTTLs writes ttl into every record of body.
func setTTLs(body, offsets []byte, ttl uint32) {
	for ; len(offsets) >= 2; offsets = offsets[2:] {
		binary.BigEndian.PutUint32(body[binary.LittleEndian.Uint16(offsets):], ttl)
	}
}

// ReplyLen returns the size in bytes of the reply to q with this answer.
func (q *Query) ReplyLen(a *Answer) int {
	n := q.end + len(a.Body)
	if q.EDNS {
		n += optLen
	}
	return n
}

// Reply writes to dst the reply to the query msg, from which q was parsed, and returns
// its length. The TTL of every record is ttl seconds. dst must have room for ReplyLen
// bytes. It may be msg itself, but must not overlap msg in another way.
//
// The header follows RFC 1035 section 4.1.1. AD is set only for clients that understand
// it (RFC 6840 section 5.8).
func (q *Query) Reply(dst, msg []byte, a *Answer, ttl uint32) int {
	additional := a.Counts[2]
	flags := uint16(a.Flags) | flagQR
	if !q.AD && !q.DO {
		flags &^= flagAD
	}
	if q.RD {
		flags |= flagRD
	}
	if q.CD {
		flags |= flagCD
	}
	if q.EDNS {
		additional++
	}
	n := q.end
	copy(dst[headerLen:n], msg[headerLen:n])
	binary.BigEndian.PutUint16(dst, q.ID)
	binary.BigEndian.PutUint16(dst[2:], flags)
	binary.BigEndian.PutUint16(dst[4:], 1)
	binary.BigEndian.PutUint16(dst[6:], a.Counts[0])
	binary.BigEndian.PutUint16(dst[8:], a.Counts[1])
	binary.BigEndian.PutUint16(dst[10:], additional)
	body := dst[n : n+len(a.Body)]
	copy(body, a.Body)
	setTTLs(body, a.TTLs, ttl)
	n += len(a.Body)
	if q.EDNS {
		q.putOPT(dst[n : n+optLen])
		n += optLen
	}
	return n
}

// putOPT writes the OPT record of a reply: the UDP size that the client advertised,
// version 0, the client's DO bit, no options.
func (q *Query) putOPT(b []byte) {
	b[0] = 0
	binary.BigEndian.PutUint16(b[1:], typeOPT)
	binary.BigEndian.PutUint16(b[3:], q.advertised)
	b[5], b[6] = 0, 0
	binary.BigEndian.PutUint16(b[7:], q.ednsFlags&ednsEcho)
	b[9], b[10] = 0, 0
}

// Valid reports whether each TTL field is in the body. It is for answers that come from
// elsewhere.
func (a *Answer) Valid() bool {
	last := -1
	for b := a.TTLs; len(b) > 0; b = b[2:] {
		if len(b) < 2 {
			return false
		}
		at := int(binary.LittleEndian.Uint16(b))
		if at <= last || at+4 > len(a.Body) {
			return false
		}
		last = at
	}
	return true
}
