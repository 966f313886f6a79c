package wire

// Offsets and sizes of RFC 1035 section 4.1 and RFC 6891 section 6.1.2.
const (
	headerLen = 12
	optLen    = 11 // an OPT record without options
	typeOPT   = 41
	classINET = 1

	flagQR     = 1 << 15
	flagOpcode = 15 << 11
	flagAA     = 1 << 10
	flagTC     = 1 << 9
	flagRD     = 1 << 8
	flagRA     = 1 << 7
	flagAD     = 1 << 5
	flagCD     = 1 << 4
	flagRcode  = 15

	ednsDO = 1 << 15
	// ednsEcho are the EDNS flags that a reply repeats, as in CoreDNS
	// (request.SizeAndDo): DO and the upper bits of Z.
	ednsEcho = 0xff00

	// MinSize is the size of a UDP reply that every client accepts (RFC 1035 section
	// 4.2.1).
	MinSize = 512
)

// Reason is why Parse leaves a query to a full parser.
type Reason uint8

// The reasons. Plain means that the query was read.
const (
	Plain       Reason = iota
	Malformed          // too short, a label too long, bytes after the end
	NotQuery           // a response, or an opcode other than QUERY
	Sections           // not exactly one question, or records in answer or authority
	Compressed         // the question name has a compression pointer
	Additional         // additional records other than one OPT, such as TSIG
	EDNSVersion        // EDNS of a version other than 0
	EDNSOption         // an EDNS option
	NotInternet        // a class other than IN

	// Reasons is the number of reasons.
	Reasons
)

var reasons = [Reasons]string{
	"plain", "malformed", "not_query", "sections", "compressed", "additional", "edns_version", "edns_option", "class",
}

// String is the reason as a metric label.
func (r Reason) String() string { return reasons[r] }

// Query is a query that was read by Parse. It holds no reference to the message, so a
// reader can use one Query for all its messages. The zero value is ready for Parse.
type Query struct {
	ID    uint16
	Type  uint16
	Class uint16
	Size  uint16 // largest UDP reply that the client accepts, in bytes; at least MinSize
	RD    bool   // recursion desired
	AD    bool   // authentic data understood (RFC 6840 section 5.7)
	CD    bool   // checking disabled
	EDNS  bool   // there was an OPT record
	DO    bool   // DNSSEC answer OK

	advertised uint16 // UDP size in the OPT record
	ednsFlags  uint16
	end        int // offset of the byte after the question
	keyLen     int
	key        [MaxKey]byte
}

// Key returns the key of the answer. It is valid until the next Parse.
func (q *Query) Key() Key { return q.key[:q.keyLen] }

// Parse reads a plain query: opcode QUERY, one question in class IN, and nothing else
// except an OPT record of EDNS version 0 without options. It returns Plain, or the reason
// why a full parser must read the query; q is undefined then.
func (q *Query) Parse(msg []byte) Reason {
	if len(msg) < headerLen+5 {
		return Malformed
	}
	flags := be16(msg[2:])
	if flags&(flagQR|flagOpcode) != 0 {
		return NotQuery
	}
	additional := be16(msg[10:])
	if be16(msg[4:]) != 1 || be16(msg[6:]) != 0 || be16(msg[8:]) != 0 {
		return Sections
	}
	if additional > 1 {
		return Additional
	}
	n, reason := q.copyName(msg[headerLen:])
	if reason != Plain {
		return reason
	}
	off := headerLen + n
	if len(msg) < off+4 {
		return Malformed
	}
	q.Type, q.Class = be16(msg[off:]), be16(msg[off+2:])
	if q.Class != classINET {
		return NotInternet
	}
	q.end = off + 4
	q.ID = be16(msg)
	q.RD, q.AD, q.CD = flags&flagRD != 0, flags&flagAD != 0, flags&flagCD != 0
	q.EDNS, q.DO, q.Size, q.advertised, q.ednsFlags = false, false, MinSize, 0, 0
	if additional == 1 {
		reason = q.parseOPT(msg[q.end:])
	} else if len(msg) != q.end {
		reason = Malformed
	}
	q.keyLen = len(appendTail(q.key[:n], q.Type, q.Class, q.bits()))
	return reason
}

func (q *Query) bits() (bits Bits) {
	if q.DO {
		bits |= DO
	}
	if q.CD {
		bits |= CD
	}
	if !q.RD {
		bits |= NoRD
	}
	return bits
}

// copyName copies the name at the start of b to the key, in lower case, and
// returns its length.
func (q *Query) copyName(b []byte) (int, Reason) {
	off := 0
	for {
		if off >= len(b) || off >= MaxName {
			return 0, Malformed
		}
		n := int(b[off])
		if n > maxLabel {
			return 0, Compressed
		}
		q.key[off] = b[off]
		off++
		if n == 0 {
			return off, Plain
		}
		if off+n >= len(b) || off+n >= MaxName {
			return 0, Malformed
		}
		for i, c := range b[off : off+n] {
			q.key[off+i] = lower(c)
		}
		off += n
	}
}

// parseOPT reads an OPT record, which is all of b (RFC 6891 section 6.1.2).
func (q *Query) parseOPT(b []byte) Reason {
	if len(b) < optLen || b[0] != 0 || be16(b[1:]) != typeOPT {
		return Additional
	}
	if b[6] != 0 {
		return EDNSVersion
	}
	if be16(b[9:]) != 0 {
		return EDNSOption
	}
	if len(b) != optLen {
		return Malformed
	}
	q.EDNS = true
	q.advertised = be16(b[3:])
	q.Size = max(q.advertised, MinSize)
	q.ednsFlags = be16(b[7:])
	q.DO = q.ednsFlags&ednsDO != 0
	return Plain
}
