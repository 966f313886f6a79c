package ledger

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Flow is the original direction of a connection, as conntrack calls it: the client's
// address and port, and those to which it sends its queries. IPv4 addresses may be in
// their IPv6-mapped form. Zones are ignored, since the kernel's tuples have none.
type Flow struct {
	Proto          uint8 // unix.IPPROTO_UDP or unix.IPPROTO_TCP; others are ignored
	Client, Server netip.AddrPort
}

// class is the transport protocol and the address family of a flow, in the bits in which a
// slot keeps them.
type class uint8

const (
	classTCP  class = 1 << 1
	classIPv6 class = 1 << 2

	classMask = classTCP | classIPv6
	classes   = 4
)

func (c class) isTCP() bool { return c&classTCP != 0 }

// index returns a number from 0 to classes-1.
func (c class) index() int { return int(c&classMask) >> 1 }

// identify returns the class of a flow and its hash. It reports false if conntrack would
// have no entry for it.
func (k *hashKeys) identify(f *Flow) (h uint64, c class, ok bool) {
	switch f.Proto {
	case unix.IPPROTO_UDP:
	case unix.IPPROTO_TCP:
		c = classTCP
	default:
		return 0, 0, false
	}
	client, server := f.Client.Addr(), f.Server.Addr()
	if !client.IsValid() || !server.IsValid() {
		return 0, 0, false
	}
	clientHi, clientLo := words(client)
	if clientHi != 0 || clientLo>>32 != 0xffff {
		c |= classIPv6
	}
	serverHi, serverLo := words(server)
	ports := uint64(f.Proto)<<32 | uint64(f.Client.Port())<<16 | uint64(f.Server.Port())

	// Multiply and fold, as wyhash does.
	h = fold(clientHi^k[0], clientLo^k[1]) ^ ports ^ k[2]
	h = fold(h, fold(serverHi^k[3], serverLo^k[4])^k[5])
	return fold(h, k[6]), c, true
}

// hashKeys make the hash of a flow unpredictable, so that no client can choose ports that
// fill one part of the table, or that are not in the sample.
type hashKeys [7]uint64

// words returns an address in its IPv6 form. IPv4 addresses are mapped.
func words(a netip.Addr) (hi, lo uint64) {
	if a.Is4() { // twice as fast as As16
		b := a.As4()
		return 0, 0xffff<<32 | uint64(binary.BigEndian.Uint32(b[:]))
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}
