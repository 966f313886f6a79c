package wire

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/miekg/dns"
)

const (
	// MaxName is the largest size of a name in bytes, with the length bytes and the root
	// (RFC 1035 section 3.1).
	MaxName = 255
	// MaxKey is the largest size of a Key in bytes.
	MaxKey = MaxName + keyTail

	keyTail  = 5 // type, class, flags
	maxLabel = 63
)

// Bits are the part of a Key that is not the question. Queries with different bits may
// get different answers.
type Bits uint8

// The bits.
const (
	DO Bits = 1 << iota // DNSSEC answer OK
	CD                  // checking disabled
	// NoRD is a query without the RD bit. Its answer may be a referral, which is no
	// answer to a query with RD.
	NoRD
	// NoSubnet is a query with a client subnet option of source prefix length 0. Its
	// answer is made without regard to any network (RFC 7871 section 7.1.2), and is
	// for such queries only (section 7.3.1).
	NoSubnet
	// Subnet is a query with the client subnet option of a network. No stored answer has
	// it: an answer that is for all networks is stored without it.
	Subnet
)

var (
	errNameTooLong  = errors.New("name is longer than 255 bytes")
	errLabelTooLong = errors.New("label is longer than 63 bytes")
	errEmptyLabel   = errors.New("name has an empty label")
	errEscape       = errors.New("name ends within an escape")
)

// Key identifies an answer. It is the question name in wire format and lower case, type
// and class in two bytes each (network order), and the Bits of the query in one byte.
type Key []byte

// AppendKey appends to dst the key for a question name in presentation format (RFC 1035
// section 5.1), with or without the final dot. It returns dst and an error if the name
// has no wire format.
func AppendKey(dst []byte, name string, qtype, qclass uint16, bits Bits) (Key, error) {
	key, err := AppendName(dst, name)
	if err != nil {
		return dst, err
	}
	return appendTail(key, qtype, qclass, bits), nil
}

func appendTail(key []byte, qtype, qclass uint16, bits Bits) []byte {
	return append(key, byte(qtype>>8), byte(qtype), byte(qclass>>8), byte(qclass), byte(bits))
}

// AppendQuestion appends to dst the key for a question name in wire format and lower case.
func AppendQuestion(dst, name []byte, qtype, qclass uint16, bits Bits) Key {
	return appendTail(append(dst, name...), qtype, qclass, bits)
}

// Name is the question name of the key: lower case, wire format.
func (k Key) Name() []byte { return k[:len(k)-keyTail] }

// Type is the question type of the key.
func (k Key) Type() uint16 { return be16(k[len(k)-keyTail:]) }

// Class is the question class of the key.
func (k Key) Class() uint16 { return be16(k[len(k)-keyTail+2:]) }

// Bits returns the bits of the queries that the key is for.
func (k Key) Bits() Bits { return Bits(k[len(k)-1]) }

// AppendWith appends to dst the same key with other bits.
func (k Key) AppendWith(dst []byte, bits Bits) Key {
	return append(append(dst, k[:len(k)-1]...), byte(bits))
}

// AppendName appends the wire format of a name in presentation format, in
// lower case.
func AppendName(dst []byte, name string) ([]byte, error) {
	start := len(dst)
	if name == "" || name == "." {
		return append(dst, 0), nil
	}
	label := len(dst) // where the length of the current label goes
	out := dst
	out = append(out, 0)
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch c {
		case '.':
			if len(out)-label == 1 {
				return dst, errEmptyLabel
			}
			label = len(out)
			out = append(out, 0)
			continue
		case '\\':
			var n int
			if c, n = unescape(name[i+1:]); n == 0 {
				return dst, errEscape
			}
			i += n
		}
		if len(out)-label > maxLabel {
			return dst, errLabelTooLong
		}
		out = append(out, lower(c))
		out[label]++
	}
	if out[label] != 0 { // no final dot
		out = append(out, 0)
	}
	if len(out)-start > MaxName {
		return dst, errNameTooLong
	}
	return out, nil
}

// unescape reads the characters after a backslash. It returns the byte that they stand
// for and their number, 0 if there are none.
func unescape(s string) (byte, int) {
	if len(s) >= 3 && isDigit(s[0]) && isDigit(s[1]) && isDigit(s[2]) {
		return (s[0]-'0')*100 + (s[1]-'0')*10 + (s[2] - '0'), 3
	}
	if len(s) == 0 {
		return 0, 0
	}
	return s[0], 1
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// NameText returns the presentation format of a name in wire format.
func NameText(name []byte) string {
	text, _, err := dns.UnpackDomainName(name, 0)
	if err != nil {
		return fmt.Sprintf("%q", name)
	}
	return text
}

// InZone reports whether the name is the zone or below it. Both are in wire
// format and lower case.
func InZone(name, zone []byte) bool {
	for off := 0; len(name)-off >= len(zone); off += 1 + int(name[off]) {
		if len(name)-off == len(zone) {
			return bytes.Equal(name[off:], zone)
		}
	}
	return false
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}

func be16(b []byte) uint16 { return uint16(b[0])<<8 | uint16(b[1]) }

// Valid reports whether the key is one that the functions of this package make. It is for
// keys that come from elsewhere.
func (k Key) Valid() bool {
	if len(k) <= keyTail || len(k) > MaxKey || k.Bits() >= Subnet {
		return false
	}
	name := k.Name()
	for off := 0; off < len(name); off += 1 + int(name[off]) {
		if n := int(name[off]); n > maxLabel || (n == 0) != (off == len(name)-1) {
			return false
		}
	}
	return true
}
