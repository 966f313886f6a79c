package conntrack

import (
	"strconv"
	"strings"
)

// A Family is the layer 3 protocol of an entry, numbered as the kernel's
// NFPROTO_* (linux/netfilter.h). The zero Family means any.
type Family uint8

// The families that connection tracking knows.
const (
	FamilyAny  Family = 0
	FamilyIPv4 Family = 2  // NFPROTO_IPV4
	FamilyIPv6 Family = 10 // NFPROTO_IPV6
)

// String returns "ipv4", "ipv6", "any", or the number.
func (f Family) String() string {
	switch f {
	case FamilyAny:
		return "any"
	case FamilyIPv4:
		return "ipv4"
	case FamilyIPv6:
		return "ipv6"
	}
	return strconv.Itoa(int(f))
}

// A Protocol is the layer 4 protocol of a tuple: the protocol number of the IP
// header (IANA protocol numbers, IPPROTO_* in linux/in.h).
type Protocol uint8

// The protocols for which connection tracking has a state machine or keys of
// its own; all others are tracked by address alone.
const (
	ICMP    Protocol = 1
	TCP     Protocol = 6
	UDP     Protocol = 17
	DCCP    Protocol = 33
	GRE     Protocol = 47
	ICMPv6  Protocol = 58
	SCTP    Protocol = 132
	UDPLite Protocol = 136
)

var protocolNames = map[Protocol]string{
	ICMP:    "icmp",
	TCP:     "tcp",
	UDP:     "udp",
	DCCP:    "dccp",
	GRE:     "gre",
	ICMPv6:  "icmpv6",
	SCTP:    "sctp",
	UDPLite: "udplite",
}

// String returns the protocol's name in lower case, or its number where
// connection tracking has no name for it.
func (p Protocol) String() string {
	if name, ok := protocolNames[p]; ok {
		return name
	}
	return strconv.Itoa(int(p))
}

// HasPorts reports whether tuples of p carry ports (for GRE: keys).
func (p Protocol) HasPorts() bool {
	switch p {
	case TCP, UDP, UDPLite, SCTP, DCCP, GRE:
		return true
	}
	return false
}

// IsICMP reports whether tuples of p carry an ICMP type, code and identifier.
func (p Protocol) IsICMP() bool { return p == ICMP || p == ICMPv6 }

// ParseProtocol returns the protocol with the given name ("tcp", in any case)
// or decimal number.
func ParseProtocol(s string) (Protocol, bool) {
	for p, name := range protocolNames {
		if strings.EqualFold(s, name) {
			return p, true
		}
	}
	if strings.EqualFold(s, "ipv6-icmp") { // the name in /etc/protocols
		return ICMPv6, true
	}
	n, err := strconv.ParseUint(s, 10, 8)
	return Protocol(n), err == nil
}
