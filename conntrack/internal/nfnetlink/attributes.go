package nfnetlink

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// ErrMalformed is what a message gets that no kernel sends.
var ErrMalformed = errors.New("malformed ctnetlink message")

// Attributes walks netlink attributes (RFC 3549 section 2.3.2.2) without copying.
// A value that is malformed ends the walk with Bad set.
type Attributes struct {
	Rest []byte
	Bad  bool
}

const (
	attrHeaderLen = 4
	attrTypeMask  = 0x3fff // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
)

// Next returns the type and payload of the next attribute; ok is false at the end.
func (a *Attributes) Next() (typ uint16, value []byte, ok bool) {
	if len(a.Rest) == 0 {
		return 0, nil, false
	}
	if len(a.Rest) < attrHeaderLen {
		a.Bad = true
		return 0, nil, false
	}
	length := int(binary.NativeEndian.Uint16(a.Rest))
	typ = binary.NativeEndian.Uint16(a.Rest[2:]) & attrTypeMask
	if length < attrHeaderLen || length > len(a.Rest) {
		a.Bad = true
		return 0, nil, false
	}
	value = a.Rest[attrHeaderLen:length]
	a.Rest = a.Rest[min(Align4(length), len(a.Rest)):]
	return typ, value, true
}

// Align4 rounds a length up to a multiple of four (NLMSG_ALIGN, NLA_ALIGN).
func Align4(n int) int { return (n + 3) &^ 3 }

// The integer readers report a payload of the wrong size through Bad, so that
// the caller checks once for a whole message.

// U8 reads a byte.
func (a *Attributes) U8(b []byte) uint8 {
	if len(b) != 1 {
		a.Bad = true
		return 0
	}
	return b[0]
}

// BE16 reads two bytes in network order.
func (a *Attributes) BE16(b []byte) uint16 {
	if len(b) != 2 {
		a.Bad = true
		return 0
	}
	return binary.BigEndian.Uint16(b)
}

// BE32 reads four bytes in network order.
func (a *Attributes) BE32(b []byte) uint32 {
	if len(b) != 4 {
		a.Bad = true
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// BE64 reads eight bytes in network order.
func (a *Attributes) BE64(b []byte) uint64 {
	if len(b) != 8 {
		a.Bad = true
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// Addr4 reads an IPv4 address.
func (a *Attributes) Addr4(b []byte) netip.Addr {
	if len(b) != 4 {
		a.Bad = true
		return netip.Addr{}
	}
	return netip.AddrFrom4([4]byte(b))
}

// Addr6 reads an IPv6 address.
func (a *Attributes) Addr6(b []byte) netip.Addr {
	if len(b) != 16 {
		a.Bad = true
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte(b))
}

// NestedString returns the payload of the attribute want inside b, nil if it
// is not there.
func (a *Attributes) NestedString(b []byte, want uint16) []byte {
	nested := Attributes{Rest: b}
	var found []byte
	for {
		typ, v, ok := nested.Next()
		if !ok {
			break
		}
		if typ == want {
			found = v
		}
	}
	a.Bad = a.Bad || nested.Bad
	return found
}
