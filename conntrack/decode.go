package conntrack

import (
	"time"

	"github.com/trackless-dns/trackless/conntrack/internal/nfnetlink"
)

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

// attrs walks the attributes of an entry.
type attrs struct{ nfnetlink.Attributes }

// attrsOf starts a walk over b.
func attrsOf(b []byte) attrs { return attrs{nfnetlink.Attributes{Rest: b}} }

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
	a := attrsOf(b)
	for {
		typ, v, ok := a.Next()
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
			e.Status = Status(a.BE32(v))
			e.fields |= FieldStatus
		case ctaTimeout:
			e.Timeout = time.Duration(a.BE32(v)) * time.Second
			e.fields |= FieldTimeout
		case ctaMark:
			e.Mark = a.BE32(v)
			e.fields |= FieldMark
		case ctaUse:
			e.Use = a.BE32(v)
			e.fields |= FieldUse
		case ctaID:
			e.ID = a.BE32(v)
			e.fields |= FieldID
		case ctaZone:
			e.Zone = a.BE16(v)
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
			if name := a.NestedString(v, ctaHelpName); name != nil {
				e.Helper = d.name(name)
				e.fields |= FieldHelper
			}
		case ctaSecctx:
			if name := a.NestedString(v, ctaSecctxName); name != nil {
				e.Secctx = d.name(name)
				e.fields |= FieldSecctx
			}
		case ctaLabels:
			if len(v) > len(e.Labels) {
				a.Bad = true
			}
			copy(e.Labels[:], v)
			e.fields |= FieldLabels
		case ctaSeqAdjOrig, ctaSeqAdjReply:
			e.fields |= FieldSeqAdj
		case ctaSynproxy:
			e.fields |= FieldSynproxy
		}
	}
	if a.Bad {
		return nfnetlink.ErrMalformed
	}
	return nil
}

// tuple decodes a nested tuple into t and reports whether it names a zone.
func (a *attrs) tuple(b []byte, t *Tuple) (zoned bool) {
	*t = Tuple{}
	parts := attrsOf(b)
	for {
		typ, v, ok := parts.Next()
		if !ok {
			break
		}
		switch typ {
		case ctaTupleIP:
			parts.tupleIP(v, t)
		case ctaTupleProto:
			parts.tupleProto(v, t)
		case ctaTupleZone:
			t.Zone = parts.BE16(v)
			zoned = true
		}
	}
	a.Bad = a.Bad || parts.Bad
	return zoned
}

func (a *attrs) tupleIP(b []byte, t *Tuple) {
	ip := attrsOf(b)
	for {
		typ, v, ok := ip.Next()
		if !ok {
			break
		}
		switch typ {
		case ctaIPv4Src:
			t.Src = ip.Addr4(v)
		case ctaIPv4Dst:
			t.Dst = ip.Addr4(v)
		case ctaIPv6Src:
			t.Src = ip.Addr6(v)
		case ctaIPv6Dst:
			t.Dst = ip.Addr6(v)
		}
	}
	a.Bad = a.Bad || ip.Bad
}

func (a *attrs) tupleProto(b []byte, t *Tuple) {
	proto := attrsOf(b)
	for {
		typ, v, ok := proto.Next()
		if !ok {
			break
		}
		switch typ {
		case ctaProtoNum:
			t.Proto = Protocol(proto.U8(v))
		case ctaProtoSrcPort:
			t.SrcPort = proto.BE16(v)
		case ctaProtoDstPort:
			t.DstPort = proto.BE16(v)
		case ctaProtoICMPID, ctaProtoICMPv6ID:
			t.ICMPID = proto.BE16(v)
		case ctaProtoICMPType, ctaProtoICMPv6Type:
			t.ICMPType = proto.U8(v)
		case ctaProtoICMPCode, ctaProtoICMPv6Code:
			t.ICMPCode = proto.U8(v)
		}
	}
	a.Bad = a.Bad || proto.Bad
}

func (a *attrs) protoinfo(b []byte, e *Entry) {
	info := attrsOf(b)
	for {
		typ, v, ok := info.Next()
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
	a.Bad = a.Bad || info.Bad
}

func (a *attrs) tcp(b []byte, e *Entry) {
	tcp := attrsOf(b)
	for {
		typ, v, ok := tcp.Next()
		if !ok {
			break
		}
		switch typ {
		case ctaTCPState:
			e.TCP.State = TCPState(tcp.U8(v))
			e.fields |= FieldTCP
		case ctaTCPWScaleOriginal:
			e.TCP.OriginalWindowScale = tcp.U8(v)
		case ctaTCPWScaleReply:
			e.TCP.ReplyWindowScale = tcp.U8(v)
		case ctaTCPFlagsOriginal, ctaTCPFlagsReply:
			if len(v) != 2 { // struct nf_ct_tcp_flags{flags, mask}
				tcp.Bad = true
				continue
			}
			if typ == ctaTCPFlagsOriginal {
				e.TCP.OriginalFlags = v[0]
			} else {
				e.TCP.ReplyFlags = v[0]
			}
		}
	}
	a.Bad = a.Bad || tcp.Bad
}

func (a *attrs) sctp(b []byte, e *Entry) {
	sctp := attrsOf(b)
	for {
		typ, v, ok := sctp.Next()
		if !ok {
			break
		}
		switch typ {
		case ctaSCTPState:
			e.SCTP.State = SCTPState(sctp.U8(v))
			e.fields |= FieldSCTP
		case ctaSCTPVTagOriginal:
			e.SCTP.OriginalVTag = sctp.BE32(v)
		case ctaSCTPVTagReply:
			e.SCTP.ReplyVTag = sctp.BE32(v)
		}
	}
	a.Bad = a.Bad || sctp.Bad
}

func (a *attrs) dccp(b []byte, e *Entry) {
	dccp := attrsOf(b)
	for {
		typ, v, ok := dccp.Next()
		if !ok {
			break
		}
		switch typ {
		case ctaDCCPState:
			e.DCCP.State = DCCPState(dccp.U8(v))
			e.fields |= FieldDCCP
		case ctaDCCPRole:
			e.DCCP.Role = dccp.U8(v)
		}
	}
	a.Bad = a.Bad || dccp.Bad
}

// counters decodes one direction's counters and reports whether both were there.
func (a *attrs) counters(b []byte, c *Counters) bool {
	var packets, bytes bool
	counters := attrsOf(b)
	for {
		typ, v, ok := counters.Next()
		if !ok {
			break
		}
		switch typ {
		case ctaCountersPackets:
			c.Packets, packets = counters.BE64(v), true
		case ctaCountersBytes:
			c.Bytes, bytes = counters.BE64(v), true
		case ctaCounters32Packets:
			c.Packets, packets = uint64(counters.BE32(v)), true
		case ctaCounters32Bytes:
			c.Bytes, bytes = uint64(counters.BE32(v)), true
		}
	}
	a.Bad = a.Bad || counters.Bad
	return packets && bytes
}

func (a *attrs) timestamp(b []byte, e *Entry) {
	stamps := attrsOf(b)
	for {
		typ, v, ok := stamps.Next()
		if !ok {
			break
		}
		switch typ {
		case ctaTimestampStart:
			e.Start = time.Unix(0, int64(stamps.BE64(v)))
			e.fields |= FieldTimestamp
		case ctaTimestampStop:
			e.Stop = time.Unix(0, int64(stamps.BE64(v)))
		}
	}
	a.Bad = a.Bad || stamps.Bad
}
