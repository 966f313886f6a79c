package conntrack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
)

// errMalformed is what a message gets that no kernel sends.
var errMalformed = errors.New("malformed ctnetlink message")

// Attribute types, from linux/netfilter/nfnetlink_conntrack.h.
const (
	ctaTupleOrig     = 1
	ctaTupleReply    = 2
	ctaStatus        = 3
	ctaProtoinfo     = 4
	ctaHelp          = 5
	ctaTimeout       = 7
	ctaMark          = 8
	ctaCountersOrig  = 9
	ctaCountersReply = 10
	ctaUse           = 11
	ctaID            = 12
	ctaTupleMaster   = 14
	ctaSeqAdjOrig    = 15
	ctaSeqAdjReply   = 16
	ctaZone          = 18
	ctaSecctx        = 19
	ctaTimestamp     = 20
	ctaMarkMask      = 21
	ctaLabels        = 22
	ctaSynproxy      = 24
	ctaFilter        = 25
	ctaStatusMask    = 26

	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaTupleZone  = 3

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum        = 1
	ctaProtoSrcPort    = 2
	ctaProtoDstPort    = 3
	ctaProtoICMPID     = 4
	ctaProtoICMPType   = 5
	ctaProtoICMPCode   = 6
	ctaProtoICMPv6ID   = 7
	ctaProtoICMPv6Type = 8
	ctaProtoICMPv6Code = 9

	ctaProtoinfoTCP  = 1
	ctaProtoinfoDCCP = 2
	ctaProtoinfoSCTP = 3

	ctaTCPState          = 1
	ctaTCPWScaleOriginal = 2
	ctaTCPWScaleReply    = 3
	ctaTCPFlagsOriginal  = 4
	ctaTCPFlagsReply     = 5

	ctaDCCPState = 1
	ctaDCCPRole  = 2

	ctaSCTPState        = 1
	ctaSCTPVTagOriginal = 2
	ctaSCTPVTagReply    = 3

	ctaCountersPackets   = 1
	ctaCountersBytes     = 2
	ctaCounters32Packets = 3
	ctaCounters32Bytes   = 4

	ctaTimestampStart = 1
	ctaTimestampStop  = 2

	ctaHelpName   = 1
	ctaSecctxName = 1

	ctaFilterOrigFlags  = 1
	ctaFilterReplyFlags = 2
)

// attrs walks netlink attributes (RFC 3549 section 2.3.2.2) without copying.
// A value that is malformed ends the walk with bad set.
type attrs struct {
	rest []byte
	bad  bool
}

const (
	attrHeaderLen = 4
	attrTypeMask  = 0x3fff // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
)

// next returns the type and payload of the next attribute; ok is false at the end.
func (a *attrs) next() (typ uint16, value []byte, ok bool) {
	if len(a.rest) == 0 {
		return 0, nil, false
	}
	if len(a.rest) < attrHeaderLen {
		a.bad = true
		return 0, nil, false
	}
	length := int(binary.NativeEndian.Uint16(a.rest))
	typ = binary.NativeEndian.Uint16(a.rest[2:]) & attrTypeMask
	if length < attrHeaderLen || length > len(a.rest) {
		a.bad = true
		return 0, nil, false
	}
	value = a.rest[attrHeaderLen:length]
	a.rest = a.rest[min(align4(length), len(a.rest)):]
	return typ, value, true
}

func align4(n int) int { return (n + 3) &^ 3 }

// The integer readers report a payload of the wrong size through bad, so that
// the caller checks once for a whole message.

func (a *attrs) u8(b []byte) uint8 {
	if len(b) != 1 {
		a.bad = true
		return 0
	}
	return b[0]
}

func (a *attrs) be16(b []byte) uint16 {
	if len(b) != 2 {
		a.bad = true
		return 0
	}
	return binary.BigEndian.Uint16(b)
}

func (a *attrs) be32(b []byte) uint32 {
	if len(b) != 4 {
		a.bad = true
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func (a *attrs) be64(b []byte) uint64 {
	if len(b) != 8 {
		a.bad = true
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

func (a *attrs) addr4(b []byte) netip.Addr {
	if len(b) != 4 {
		a.bad = true
		return netip.Addr{}
	}
	return netip.AddrFrom4([4]byte(b))
}

func (a *attrs) addr6(b []byte) netip.Addr {
	if len(b) != 16 {
		a.bad = true
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte(b))
}

// A decoder turns messages into entries. It interns the few names that recur
// (helpers, security contexts), so that decoding allocates nothing once it has
// seen them.
type decoder struct {
	names map[string]string
}

// maxNames bounds the memory that hostile or merely odd names can take.
const maxNames = 1024

func (d *decoder) name(b []byte) string {
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	if s, ok := d.names[string(b)]; ok {
		return s
	}
	s := string(b)
	if d.names == nil {
		d.names = make(map[string]string)
	}
	if len(d.names) < maxNames {
		d.names[s] = s
	}
	return s
}

// entry decodes the attributes of one message (b is what follows struct
// nfgenmsg) into e, which is reset first.
func (d *decoder) entry(b []byte, e *Entry) error {
	*e = Entry{}
	a := attrs{rest: b}
	for {
		typ, v, ok := a.next()
		if !ok {
			break
		}
		switch typ {
		case ctaTupleOrig:
			if a.tuple(v, &e.Original) {
				e.fields |= FieldOriginalZone
			}
		case ctaTupleReply:
			if a.tuple(v, &e.Reply) {
				e.fields |= FieldReplyZone
			}
		case ctaTupleMaster:
			a.tuple(v, &e.Master)
			e.fields |= FieldMaster
		case ctaStatus:
			e.Status = Status(a.be32(v))
			e.fields |= FieldStatus
		case ctaTimeout:
			e.Timeout = time.Duration(a.be32(v)) * time.Second
			e.fields |= FieldTimeout
		case ctaMark:
			e.Mark = a.be32(v)
			e.fields |= FieldMark
		case ctaUse:
			e.Use = a.be32(v)
			e.fields |= FieldUse
		case ctaID:
			e.ID = a.be32(v)
			e.fields |= FieldID
		case ctaZone:
			e.Zone = a.be16(v)
			e.fields |= FieldZone
		case ctaProtoinfo:
			a.protoinfo(v, e)
		case ctaCountersOrig:
			if a.counters(v, &e.OriginalCounters) {
				e.fields |= FieldOriginalCount
			}
		case ctaCountersReply:
			if a.counters(v, &e.ReplyCounters) {
				e.fields |= FieldReplyCount
			}
		case ctaTimestamp:
			a.timestamp(v, e)
		case ctaHelp:
			if name := a.nestedString(v, ctaHelpName); name != nil {
				e.Helper = d.name(name)
				e.fields |= FieldHelper
			}
		case ctaSecctx:
			if name := a.nestedString(v, ctaSecctxName); name != nil {
				e.Secctx = d.name(name)
				e.fields |= FieldSecctx
			}
		case ctaLabels:
			if len(v) > len(e.Labels) {
				a.bad = true
			}
			copy(e.Labels[:], v)
			e.fields |= FieldLabels
		case ctaSeqAdjOrig, ctaSeqAdjReply:
			e.fields |= FieldSeqAdj
		case ctaSynproxy:
			e.fields |= FieldSynproxy
		}
	}
	if a.bad {
		return errMalformed
	}
	return nil
}

// tuple decodes a nested tuple into t and reports whether it names a zone.
func (a *attrs) tuple(b []byte, t *Tuple) (zoned bool) {
	*t = Tuple{}
	parts := attrs{rest: b}
	for {
		typ, v, ok := parts.next()
		if !ok {
			break
		}
		switch typ {
		case ctaTupleIP:
			parts.tupleIP(v, t)
		case ctaTupleProto:
			parts.tupleProto(v, t)
		case ctaTupleZone:
			t.Zone = parts.be16(v)
			zoned = true
		}
	}
	a.bad = a.bad || parts.bad
	return zoned
}

func (a *attrs) tupleIP(b []byte, t *Tuple) {
	ip := attrs{rest: b}
	for {
		typ, v, ok := ip.next()
		if !ok {
			break
		}
		switch typ {
		case ctaIPv4Src:
			t.Src = ip.addr4(v)
		case ctaIPv4Dst:
			t.Dst = ip.addr4(v)
		case ctaIPv6Src:
			t.Src = ip.addr6(v)
		case ctaIPv6Dst:
			t.Dst = ip.addr6(v)
		}
	}
	a.bad = a.bad || ip.bad
}

func (a *attrs) tupleProto(b []byte, t *Tuple) {
	proto := attrs{rest: b}
	for {
		typ, v, ok := proto.next()
		if !ok {
			break
		}
		switch typ {
		case ctaProtoNum:
			t.Proto = Protocol(proto.u8(v))
		case ctaProtoSrcPort:
			t.SrcPort = proto.be16(v)
		case ctaProtoDstPort:
			t.DstPort = proto.be16(v)
		case ctaProtoICMPID, ctaProtoICMPv6ID:
			t.ICMPID = proto.be16(v)
		case ctaProtoICMPType, ctaProtoICMPv6Type:
			t.ICMPType = proto.u8(v)
		case ctaProtoICMPCode, ctaProtoICMPv6Code:
			t.ICMPCode = proto.u8(v)
		}
	}
	a.bad = a.bad || proto.bad
}

func (a *attrs) protoinfo(b []byte, e *Entry) {
	info := attrs{rest: b}
	for {
		typ, v, ok := info.next()
		if !ok {
			break
		}
		switch typ {
		case ctaProtoinfoTCP:
			info.tcp(v, e)
		case ctaProtoinfoSCTP:
			info.sctp(v, e)
		case ctaProtoinfoDCCP:
			info.dccp(v, e)
		}
	}
	a.bad = a.bad || info.bad
}

func (a *attrs) tcp(b []byte, e *Entry) {
	tcp := attrs{rest: b}
	for {
		typ, v, ok := tcp.next()
		if !ok {
			break
		}
		switch typ {
		case ctaTCPState:
			e.TCP.State = TCPState(tcp.u8(v))
			e.fields |= FieldTCP
		case ctaTCPWScaleOriginal:
			e.TCP.OriginalWindowScale = tcp.u8(v)
		case ctaTCPWScaleReply:
			e.TCP.ReplyWindowScale = tcp.u8(v)
		case ctaTCPFlagsOriginal, ctaTCPFlagsReply:
			if len(v) != 2 { // struct nf_ct_tcp_flags{flags, mask}
				tcp.bad = true
				continue
			}
			if typ == ctaTCPFlagsOriginal {
				e.TCP.OriginalFlags = v[0]
			} else {
				e.TCP.ReplyFlags = v[0]
			}
		}
	}
	a.bad = a.bad || tcp.bad
}

func (a *attrs) sctp(b []byte, e *Entry) {
	sctp := attrs{rest: b}
	for {
		typ, v, ok := sctp.next()
		if !ok {
			break
		}
		switch typ {
		case ctaSCTPState:
			e.SCTP.State = SCTPState(sctp.u8(v))
			e.fields |= FieldSCTP
		case ctaSCTPVTagOriginal:
			e.SCTP.OriginalVTag = sctp.be32(v)
		case ctaSCTPVTagReply:
			e.SCTP.ReplyVTag = sctp.be32(v)
		}
	}
	a.bad = a.bad || sctp.bad
}

func (a *attrs) dccp(b []byte, e *Entry) {
	dccp := attrs{rest: b}
	for {
		typ, v, ok := dccp.next()
		if !ok {
			break
		}
		switch typ {
		case ctaDCCPState:
			e.DCCP.State = DCCPState(dccp.u8(v))
			e.fields |= FieldDCCP
		case ctaDCCPRole:
			e.DCCP.Role = dccp.u8(v)
		}
	}
	a.bad = a.bad || dccp.bad
}

// counters decodes one direction's counters and reports whether both were there.
func (a *attrs) counters(b []byte, c *Counters) bool {
	var packets, bytes bool
	counters := attrs{rest: b}
	for {
		typ, v, ok := counters.next()
		if !ok {
			break
		}
		switch typ {
		case ctaCountersPackets:
			c.Packets, packets = counters.be64(v), true
		case ctaCountersBytes:
			c.Bytes, bytes = counters.be64(v), true
		case ctaCounters32Packets:
			c.Packets, packets = uint64(counters.be32(v)), true
		case ctaCounters32Bytes:
			c.Bytes, bytes = uint64(counters.be32(v)), true
		}
	}
	a.bad = a.bad || counters.bad
	return packets && bytes
}

func (a *attrs) timestamp(b []byte, e *Entry) {
	stamps := attrs{rest: b}
	for {
		typ, v, ok := stamps.next()
		if !ok {
			break
		}
		switch typ {
		case ctaTimestampStart:
			e.Start = time.Unix(0, int64(stamps.be64(v)))
			e.fields |= FieldTimestamp
		case ctaTimestampStop:
			e.Stop = time.Unix(0, int64(stamps.be64(v)))
		}
	}
	a.bad = a.bad || stamps.bad
}

// nestedString returns the payload of the attribute want inside b, nil if it
// is not there.
func (a *attrs) nestedString(b []byte, want uint16) []byte {
	nested := attrs{rest: b}
	var found []byte
	for {
		typ, v, ok := nested.next()
		if !ok {
			break
		}
		if typ == want {
			found = v
		}
	}
	a.bad = a.bad || nested.bad
	return found
}
