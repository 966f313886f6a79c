package conntrack

import (
	"net/netip"
	"time"
)

// A Tuple names one direction of a tracked flow.
type Tuple struct {
	Src, Dst netip.Addr

	// SrcPort and DstPort are the ports of TCP, UDP, UDP-Lite, SCTP and DCCP,
	// and the keys of GRE (PPTP call IDs; 0 for GRE without keys). They are 0
	// for every other protocol.
	SrcPort, DstPort uint16

	// Proto is the layer 4 protocol.
	Proto Protocol

	// ICMPType, ICMPCode and ICMPID are set for ICMP and ICMPv6 only. In a
	// reply tuple it is the type of the answer.
	ICMPType, ICMPCode uint8
	ICMPID             uint16

	// Zone is the zone of this direction alone, where the rules assign zones
	// by direction; see Entry.Zone for the common case.
	Zone uint16
}

// Family returns the layer 3 protocol of t, from its addresses.
func (t *Tuple) Family() Family {
	switch {
	case t.Src.Is4():
		return FamilyIPv4
	case t.Src.Is6():
		return FamilyIPv6
	}
	return FamilyAny
}

// Source returns the source address and port.
func (t *Tuple) Source() netip.AddrPort { return netip.AddrPortFrom(t.Src, t.SrcPort) }

// Destination returns the destination address and port.
func (t *Tuple) Destination() netip.AddrPort { return netip.AddrPortFrom(t.Dst, t.DstPort) }

// Counters are the packets and bytes of one direction. The kernel keeps them
// only while net.netfilter.nf_conntrack_acct is 1.
type Counters struct {
	Packets, Bytes uint64
}

// A Field names a part of an Entry that the kernel sends only sometimes.
type Field uint32

// The optional parts of an Entry.
const (
	FieldStatus Field = 1 << iota
	// FieldTimeout is absent for entries handed to a flow table, and in destroy
	// events of entries that ran out; older kernels never send it in those.
	FieldTimeout
	// FieldMark is absent if the mark is 0 on some kernels, and without
	// CONFIG_NF_CONNTRACK_MARK.
	FieldMark
	FieldUse
	FieldID
	// FieldZone is a zone of both directions, FieldOriginalZone and
	// FieldReplyZone one of a single direction.
	FieldZone
	FieldOriginalZone
	FieldReplyZone
	FieldTCP
	FieldSCTP
	FieldDCCP
	// FieldOriginalCount and FieldReplyCount need nf_conntrack_acct=1 when the
	// entry is made.
	FieldOriginalCount
	FieldReplyCount
	// FieldTimestamp needs nf_conntrack_timestamp=1 when the entry is made.
	FieldTimestamp
	FieldHelper
	// FieldLabels needs a rule that uses labels when the entry is made.
	FieldLabels
	FieldSecctx
	// FieldMaster is set for an entry that another one expected.
	FieldMaster
	// FieldSeqAdj is set where NAT changed the length of a TCP stream.
	FieldSeqAdj
	FieldSynproxy
)

// TCPInfo is the TCP part of an entry.
type TCPInfo struct {
	State TCPState
	// OriginalWindowScale and ReplyWindowScale are the shift counts that the
	// SYN and SYN-ACK announced (RFC 7323 section 2).
	OriginalWindowScale, ReplyWindowScale uint8
	// OriginalFlags and ReplyFlags are the kernel's IP_CT_TCP_FLAG_*
	// (linux/netfilter/nf_conntrack_tcp.h).
	OriginalFlags, ReplyFlags uint8
}

// SCTPInfo is the SCTP part of an entry.
type SCTPInfo struct {
	State SCTPState
	// OriginalVTag and ReplyVTag are the verification tags (RFC 9260 section 8.5).
	OriginalVTag, ReplyVTag uint32
}

// DCCPInfo is the DCCP part of an entry. Linux 6.17 and later track no DCCP.
type DCCPInfo struct {
	State DCCPState
	// Role is 0 if the original direction is the client's, 1 if the server's.
	Role uint8
}

// An Entry is one tracked flow. Its zero value is an entry of which nothing is
// known; Has tells which of the optional parts the kernel sent.
//
// An Entry that a callback receives is valid until the callback returns; a
// plain copy of it may be kept.
type Entry struct {
	Original, Reply Tuple

	Status Status
	// Timeout is the time until the kernel forgets the entry if no further
	// packet comes, in whole seconds. An entry whose time has passed may still
	// be in the table, but is not dumped.
	Timeout time.Duration
	Mark    uint32
	// Use is the reference count; 1 is an entry nobody is looking at.
	Use uint32
	// ID is the kernel's identification of the entry, unique among live
	// entries in practice (a keyed hash of it, since Linux 5.2).
	ID uint32
	// Zone is the zone of both directions; 0 is the default zone.
	Zone uint16

	TCP  TCPInfo
	SCTP SCTPInfo
	DCCP DCCPInfo

	OriginalCounters, ReplyCounters Counters

	// Start and Stop are when the entry was made and destroyed. Stop is set
	// in destroy events only.
	Start, Stop time.Time

	// Helper is the name of the application helper ("ftp", "sip").
	Helper string
	// Labels are the connection labels, bit i of the set at Labels[i/8]>>(i%8)&1
	// on little-endian machines: the kernel sends its array of longs as it is.
	Labels [16]byte
	// Secctx is the security context, where a security module assigned one.
	Secctx string
	// Master is the original tuple of the entry that expected this one.
	Master Tuple

	// PortID is, in events, the netlink port of the program that made, changed
	// or deleted the entry by a request, 0 if packets or time did. It is the
	// process's ID if that was its first netlink socket.
	PortID uint32

	fields Field
}

// Has reports whether the kernel sent every field in f.
func (e *Entry) Has(f Field) bool { return e.fields&f == f }

// Family returns the layer 3 protocol of the flow.
func (e *Entry) Family() Family { return e.Original.Family() }

// Protocol returns the layer 4 protocol of the flow.
func (e *Entry) Protocol() Protocol { return e.Original.Proto }

// IsDNS reports whether the flow is DNS over port 53, UDP or TCP, also where
// the tracked "original" direction is in truth an answer: a late answer whose
// query was not tracked makes an entry with source port 53.
func (e *Entry) IsDNS() bool {
	if e.Original.Proto != UDP && e.Original.Proto != TCP {
		return false
	}
	return e.Original.DstPort == dnsPort || e.Original.SrcPort == dnsPort || e.Reply.SrcPort == dnsPort
}

const dnsPort = 53

// NAT returns what the kernel rewrites on packets of this flow.
func (e *Entry) NAT() NATKind {
	var k NATKind
	if e.Status&StatusSrcNAT != 0 {
		k |= NATSource
	}
	if e.Status&StatusDstNAT != 0 {
		k |= NATDestination
	}
	return k
}

// SetFields declares which optional parts of an Entry that was not read from the
// kernel are set, for tests and for entries put together by hand.
func (e *Entry) SetFields(f Field) { e.fields = f }
