package wire

import "bytes"

const (
	typeSOA   = 6
	soaFixed  = 5 * 4 // the numbers of an SOA record, after the names
	rcodeName = 3     // NXDOMAIN
)

// Denial makes the denial of a name of a denial of another name, or of another type of the
// same name (RFC 2308 section 5, RFC 8020 section 2). The answer a was given to the name
// denied. The result denies name, which is denied or below it. It has the SOA record of a and
// no other record. AD is not set, since nothing is said about signatures.
//
// The body is appended to dst. Denial returns false if a is no NXDOMAIN response, if it has
// an answer section, as an alias has, or if it has no SOA record of a zone of the name.
func (a *Answer) Denial(dst, denied, name []byte) (Answer, bool) {
	if a.Flags.Rcode() != rcodeName || a.Counts[0] > 0 {
		return Answer{}, false
	}
	off, ok := a.soa()
	if !ok {
		return Answer{}, false
	}
	var buf [MaxName]byte
	zone, ok := expandName(buf[:0], a.Body, off, denied)
	if !ok || !InZone(denied, zone) || !InZone(name, denied) {
		return Answer{}, false
	}
	fixed, err := skipName(a.Body, off)
	if err != nil {
		return Answer{}, false
	}
	start := len(dst)
	dst = appendOwner(dst, name, zone)
	ttl := len(dst) - start + 4
	data := fixed + fixedLen - 2
	dst = append(dst, a.Body[fixed:data]...)
	length := len(dst) - 2
	for range 2 { // the primary server, and the mailbox
		next, err := skipName(a.Body, data)
		if err != nil {
			return Answer{}, false
		}
		text, ok := expandName(buf[:0], a.Body, data, denied)
		if !ok {
			return Answer{}, false
		}
		dst, data = append(dst, text...), next
	}
	if data+soaFixed > len(a.Body) {
		return Answer{}, false
	}
	dst = append(dst, a.Body[data:data+soaFixed]...)
	n := len(dst) - length - 2
	dst[length], dst[length+1] = byte(n>>8), byte(n)
	body := len(dst)
	dst = append(dst, byte(ttl), byte(ttl>>8))
	return Answer{
		Flags: a.Flags &^ flagAD, Counts: [3]uint16{0, 1, 0},
		Body: dst[start:body], TTLs: dst[body:],
	}, true
}

// appendOwner appends the owner name zone, as a pointer into the question name.
func appendOwner(dst, name, zone []byte) []byte {
	if len(zone) == 1 {
		return append(dst, 0) // a pointer to the root is longer
	}
	to := headerLen + len(name) - len(zone)
	return append(dst, 0xc0|byte(to>>8), byte(to))
}

// soa returns the offset of the SOA record in the authority section.
func (a *Answer) soa() (int, bool) {
	off := 0
	for range a.Counts[authority] {
		fixed, err := skipName(a.Body, off)
		if err != nil || fixed+fixedLen-2 > len(a.Body) {
			return 0, false
		}
		if be16(a.Body[fixed:]) == typeSOA {
			return off, true
		}
		var ok bool
		if off, ok = skipRecord(a.Body, off); !ok {
			return 0, false
		}
	}
	return 0, false
}

// Labels returns the number of labels of a name in wire format, without the root.
func Labels(name []byte) int {
	n := 0
	for off := 0; off < len(name) && name[off] != 0; off += 1 + int(name[off]) {
		n++
	}
	return n
}

// Parent returns the name without its first label. The root has no parent: Parent returns
// nil.
func Parent(name []byte) []byte {
	if len(name) <= 1 {
		return nil
	}
	return name[1+int(name[0]):]
}

// ChildOf returns the name one label below the zone, on the way to name. It returns nil if
// name is not below the zone.
func ChildOf(name, zone []byte) []byte {
	for child := name; len(child) > len(zone); {
		parent := Parent(child)
		if len(parent) == len(zone) {
			if bytes.Equal(parent, zone) {
				return child
			}
			return nil
		}
		child = parent
	}
	return nil
}

// WithType sets the question type of the key in place.
func (k Key) WithType(qtype uint16) Key {
	k[len(k)-keyTail], k[len(k)-keyTail+1] = byte(qtype>>8), byte(qtype)
	return k
}
