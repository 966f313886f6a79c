package conntrack

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"
)

// Create puts an entry into the table, as conntrackd(8) does on the node that
// takes over: from e it takes the tuples, timeout, status, mark, zone, TCP and
// SCTP state, labels and helper. NAT follows from the tuples: where the reply
// is not the mirror of the original the kernel is told to rewrite. An entry
// that exists already is an error for which errors.Is(err, fs.ErrExist) holds.
func (c *Conn) Create(e *Entry) error {
	op := fmt.Sprintf("create %s %s -> %s", e.Original.Proto, e.Original.Source(), e.Original.Destination())
	req, err := request(msgNew, e.Family(), netlink.Create|netlink.Excl|netlink.Acknowledge, createAttributes(e)...)
	if err != nil {
		return opError(op, err)
	}
	return opError(op, c.short(req, nil))
}

func createAttributes(e *Entry) []netfilter.Attribute {
	// The kernel rewrites the reply itself, and does not count as NAT what it
	// finds rewritten already (nf_nat_setup_info).
	mirror := e.Original.Mirror()
	mirror.Zone = e.Reply.Zone
	list := []netfilter.Attribute{
		tupleAttribute(ctaTupleOrig, &e.Original),
		tupleAttribute(ctaTupleReply, &mirror),
		{Type: ctaTimeout, Data: binary.BigEndian.AppendUint32(nil, uint32(e.Timeout/time.Second))},
		// Bits that only the kernel may set are refused (EBUSY): IPS_UNCHANGEABLE_MASK.
		{Type: ctaStatus, Data: binary.BigEndian.AppendUint32(nil, uint32(e.Status&(StatusSeenReply|StatusAssured|StatusFixedTimeout|StatusHelper)|StatusConfirmed))},
	}
	if e.Mark != 0 {
		list = append(list, netfilter.Attribute{Type: ctaMark, Data: binary.BigEndian.AppendUint32(nil, e.Mark)})
	}
	if e.Zone != 0 {
		list = append(list, netfilter.Attribute{Type: ctaZone, Data: binary.BigEndian.AppendUint16(nil, e.Zone)})
	}
	if e.Helper != "" {
		list = append(list, netfilter.Attribute{Type: ctaHelp, Nested: true, Children: []netfilter.Attribute{
			{Type: ctaHelpName, Data: append([]byte(e.Helper), 0)},
		}})
	}
	if e.Labels != [16]byte{} {
		list = append(list, netfilter.Attribute{Type: ctaLabels, Data: e.Labels[:]})
	}
	switch e.Original.Proto {
	case TCP:
		list = append(list, tcpAttribute(&e.TCP))
	case SCTP:
		list = append(list, sctpAttribute(&e.SCTP))
	}
	return append(list, natAttributes(e)...)
}

func tcpAttribute(t *TCPInfo) netfilter.Attribute {
	return netfilter.Attribute{Type: ctaProtoinfo, Nested: true, Children: []netfilter.Attribute{
		{Type: ctaProtoinfoTCP, Nested: true, Children: []netfilter.Attribute{
			{Type: ctaTCPState, Data: []byte{byte(t.State)}},
			{Type: ctaTCPFlagsOriginal, Data: []byte{t.OriginalFlags, t.OriginalFlags}},
			{Type: ctaTCPFlagsReply, Data: []byte{t.ReplyFlags, t.ReplyFlags}},
		}},
	}}
}

func sctpAttribute(s *SCTPInfo) netfilter.Attribute {
	return netfilter.Attribute{Type: ctaProtoinfo, Nested: true, Children: []netfilter.Attribute{
		{Type: ctaProtoinfoSCTP, Nested: true, Children: []netfilter.Attribute{
			{Type: ctaSCTPState, Data: []byte{byte(s.State)}},
			{Type: ctaSCTPVTagOriginal, Data: binary.BigEndian.AppendUint32(nil, s.OriginalVTag)},
			{Type: ctaSCTPVTagReply, Data: binary.BigEndian.AppendUint32(nil, s.ReplyVTag)},
		}},
	}}
}

// natAttributes encodes the rewriting that turns the original tuple into the
// mirror of the reply tuple (CTA_NAT_SRC and CTA_NAT_DST, enum ctattr_nat).
func natAttributes(e *Entry) []netfilter.Attribute {
	const (
		ctaNATSrc, ctaNATDst         = 6, 13
		ctaNATv4Min, ctaNATv4Max     = 1, 2
		ctaNATProto                  = 3
		ctaNATv6Min, ctaNATv6Max     = 4, 5
		ctaNATPortMin, ctaNATPortMax = 1, 2
	)
	nat := func(typ uint16, addr []byte, port uint16) netfilter.Attribute {
		first, last := uint16(ctaNATv4Min), uint16(ctaNATv4Max)
		if len(addr) == 16 {
			first, last = ctaNATv6Min, ctaNATv6Max
		}
		children := []netfilter.Attribute{{Type: first, Data: addr}, {Type: last, Data: addr}}
		if e.Original.Proto.HasPorts() {
			p := binary.BigEndian.AppendUint16(nil, port)
			children = append(children, netfilter.Attribute{Type: ctaNATProto, Nested: true, Children: []netfilter.Attribute{
				{Type: ctaNATPortMin, Data: p}, {Type: ctaNATPortMax, Data: p},
			}})
		}
		return netfilter.Attribute{Type: typ, Nested: true, Children: children}
	}
	var list []netfilter.Attribute
	if e.Reply.Destination() != e.Original.Source() {
		list = append(list, nat(ctaNATSrc, e.Reply.Dst.AsSlice(), e.Reply.DstPort))
	}
	if e.Reply.Source() != e.Original.Destination() {
		list = append(list, nat(ctaNATDst, e.Reply.Src.AsSlice(), e.Reply.SrcPort))
	}
	return list
}

// Mirror returns the tuple of the answers to t where nothing is rewritten. A
// zone of one direction is not mirrored.
func (t Tuple) Mirror() Tuple {
	r := t
	r.Zone = 0
	r.Src, r.Dst = t.Dst, t.Src
	r.SrcPort, r.DstPort = t.DstPort, t.SrcPort
	if t.Proto.IsICMP() {
		r.ICMPType = icmpReply(t.Proto, t.ICMPType)
	}
	return r
}

// icmpReply returns the type that answers an ICMP request (invmap in
// net/netfilter/nf_conntrack_proto_icmp.c and _icmpv6.c).
func icmpReply(p Protocol, typ uint8) uint8 {
	pairs := [][2]uint8{{8, 0}, {13, 14}, {15, 16}, {17, 18}} // echo, timestamp, information, address mask
	if p == ICMPv6 {
		pairs = [][2]uint8{{128, 129}, {139, 140}} // echo, node information
	}
	for _, pair := range pairs {
		switch typ {
		case pair[0]:
			return pair[1]
		case pair[1]:
			return pair[0]
		}
	}
	return typ
}
