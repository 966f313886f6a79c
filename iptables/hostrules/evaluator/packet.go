package evaluator

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// Probe is a packet whose family, protocol and one end are known: a query to an
// endpoint, or a response from it.
type Probe struct {
	Endpoint  iptables.Endpoint
	Direction iptables.Direction
	Path      *Path // nil: before conntrack, over any device
}

// Family is the IP version of the packet.
func (p Probe) Family() iptables.Family { return iptables.FamilyOf(p.Endpoint.Addr) }

// Passes reports whether chains of a table of the family see the packet.
func (p Probe) Passes(f nftables.TableFamily) bool {
	switch f {
	case nftables.TableFamilyIPv4:
		return p.Family() == iptables.IPv4
	case nftables.TableFamilyIPv6:
		return p.Family() == iptables.IPv6
	}
	return true
}

// MayMatch returns a filter for the rules that one of the packets matches, or may match:
// the sets are not read.
func MayMatch(probes []Probe) func(nftables.TableFamily, nfnl.Rule) bool {
	unread := func(string) ([]nfnl.Element, error) { return nil, errors.New("not read") }
	return func(f nftables.TableFamily, r nfnl.Rule) bool {
		return slices.ContainsFunc(probes, func(p Probe) bool {
			return p.Passes(f) && Evaluate(r, p, unread).Matches != Never
		})
	}
}

// field returns a part of a header; nil if it is unknown.
func (p Probe) field(base, offset uint32, length int) []byte {
	var header [64]byte
	var known [64]bool
	put := func(at int, value ...byte) {
		for i, b := range value {
			header[at+i], known[at+i] = b, true
		}
	}
	e := p.Endpoint
	switch base {
	case unix.NFT_PAYLOAD_NETWORK_HEADER:
		ends := 12
		if p.Family() == iptables.IPv6 {
			put(6, byte(e.Proto))
			ends = 8
		} else {
			put(9, byte(e.Proto))
		}
		source, destination := e.Addr, p.client()
		if p.Direction == iptables.Query {
			source, destination = destination, source
		}
		put(ends, source.AsSlice()...)
		put(ends+e.Addr.BitLen()/8, destination.AsSlice()...)
	case unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		at := 0
		if p.Direction == iptables.Query {
			at = 2
		}
		put(at, binary.BigEndian.AppendUint16(nil, e.Port)...)
	}
	end := int(offset) + length
	if length <= 0 || int(offset) > len(header) || end > len(header) || slices.Contains(known[offset:end], false) {
		return nil
	}
	return header[offset:end]
}

// otherEnd reports whether a part of a header is the whole address or port of the other
// end, and that is unknown.
func (p Probe) otherEnd(base, offset uint32, length int) bool {
	if p.cautious() {
		return false
	}
	if base == unix.NFT_PAYLOAD_NETWORK_HEADER && p.Path != nil && (p.Path.AnyClient || p.Path.Client.IsValid()) {
		return false
	}
	toOther := p.Direction == iptables.Response
	switch {
	case base == unix.NFT_PAYLOAD_TRANSPORT_HEADER && length == 2:
		return toOther && offset == 2 || !toOther && offset == 0
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && p.Family() == iptables.IPv4 && length == 4:
		return toOther && offset == 16 || !toOther && offset == 12
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && p.Family() == iptables.IPv6 && length == 16:
		return toOther && offset == 24 || !toOther && offset == 8
	}
	return false
}

// clients are those of the packet; an invalid address is a client with an unknown one.
func (p Probe) clients() []netip.Addr {
	switch {
	case p.Path == nil || p.Path.Client.IsValid():
		return nil
	case p.Path.AnyClient:
		return p.Path.Clients
	}
	return []netip.Addr{{}}
}

// clientAt reports whether a part of a header is a part of the address of a client, of
// several or of an unknown one. place is its offset in the address.
func (p Probe) clientAt(base, offset uint32, length int) (place int, is bool) {
	if base != unix.NFT_PAYLOAD_NETWORK_HEADER || len(p.clients()) == 0 {
		return 0, false
	}
	size, source := net.IPv4len, 12
	if p.Family() == iptables.IPv6 {
		size, source = net.IPv6len, 8
	}
	begins := source
	if p.Direction == iptables.Response {
		begins += size
	}
	place = int(offset) - begins
	return place, place >= 0 && length > 0 && place+length <= size
}

// meta returns a property of the packet that is not in its headers.
func (p Probe) meta(key uint32) []byte {
	v6 := p.Family() == iptables.IPv6
	switch key {
	case unix.NFT_META_NFPROTO:
		if v6 {
			return []byte{unix.NFPROTO_IPV6}
		}
		return []byte{unix.NFPROTO_IPV4}
	case unix.NFT_META_L4PROTO:
		return []byte{byte(p.Endpoint.Proto)}
	case unix.NFT_META_PROTOCOL:
		if v6 {
			return []byte{0x86, 0xdd}
		}
		return []byte{0x08, 0x00}
	}
	return p.device(key)
}
