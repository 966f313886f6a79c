package ledger

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Flow names what conntrack calls the original direction of a connection: the
// client's address and port, and those it sends its queries to. IPv4 addresses
// may be given in their IPv6-mapped form; zones are ignored, as the kernel's
// tuples have none.
type Flow struct {
	Proto          uint8 // unix.IPPROTO_UDP or unix.IPPROTO_TCP; others are ignored
	Client, Server netip.AddrPort
}

// class is the transport protocol and the address family of a flow, in the bits
// that a slot keeps them in.
type class uint8

const (
	classTCP  class = 1 << 1
	classIPv6 class = 1 << 2

	classMask = classTCP | classIPv6
	classes   = 4
)

func (c class) isTCP() bool { return c&classTCP != 0 }

// index is 0 to classes-1.
func (c class) index() int { return int(c&classMask) >> 1 }

func (f *Flow) class() (class, bool) {
	var c class
	switch f.Proto {
	case unix.IPPROTO_UDP:
	case unix.IPPROTO_TCP:
		c = classTCP
	default:
		return 0, false
	}
	client := f.Client.Addr()
	if !client.IsValid() || !f.Server.Addr().IsValid() {
		return 0, false
	}
	if !client.Is4() && !client.Is4In6() {
		c |= classIPv6
	}
	return c, true
}

// hashKeys make the hash of a flow unforeseeable, so that no client can choose
// its ports to fill one part of the table or to stay out of the sample.
type hashKeys [6]uint64

// hash mixes the tuple into 64 bits, each of which depends on all of it: the
// table takes its shard, place, sample and identity from different bits.
// The construction is multiply and fold, with the murmur3 finalizer.
func (k *hashKeys) hash(f *Flow) uint64 {
	client, server := f.Client.Addr().As16(), f.Server.Addr().As16()
	ports := uint64(f.Proto)<<32 | uint64(f.Client.Port())<<16 | uint64(f.Server.Port())
	c := fold(binary.LittleEndian.Uint64(client[:8])^k[0], binary.LittleEndian.Uint64(client[8:])^k[1])
	s := fold(binary.LittleEndian.Uint64(server[:8])^k[2], binary.LittleEndian.Uint64(server[8:])^k[3])
	h := fold(c^ports^k[4], s^k[5])
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}
