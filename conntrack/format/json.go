package format

import (
	"encoding/hex"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/trackless-dns/trackless/conntrack"
)

// The JSON of an entry is not made by encoding/json: reflection would take longer than the
// kernel takes to send the table. Field names are part of the interface and do not change.
// Fields that an entry does not have are left out.

// jsonLines writes one object per line.
type jsonLines struct{}

func (jsonLines) begin(b []byte) []byte       { return b }
func (jsonLines) end(b []byte, _ bool) []byte { return b }
func (jsonLines) entry(b []byte, e *conntrack.Entry, t conntrack.EventType, _ bool) []byte {
	return append(appendJSON(b, e, t), '\n')
}

// jsonDocument writes one array.
type jsonDocument struct{}

func (jsonDocument) begin(b []byte) []byte { return append(b, '[') }

func (jsonDocument) entry(b []byte, e *conntrack.Entry, t conntrack.EventType, first bool) []byte {
	if !first {
		b = append(b, ',')
	}
	return appendJSON(append(b, "\n  "...), e, t)
}

func (jsonDocument) end(b []byte, empty bool) []byte {
	if !empty {
		b = append(b, '\n')
	}
	return append(b, "]\n"...)
}

// appendJSON appends one entry as a JSON object.
func appendJSON(b []byte, e *conntrack.Entry, t conntrack.EventType) []byte {
	b = append(b, '{')
	if t != 0 {
		b = appendJSONString(b, "event", t.String())
	}
	b = appendJSONString(b, "family", e.Family().String())
	b = appendJSONString(b, "protocol", e.Original.Proto.String())
	b = appendJSONUint(b, "protocol_number", uint64(e.Original.Proto))
	b = appendJSONString(b, "state", e.State())
	if e.Has(conntrack.FieldTimeout) {
		b = appendJSONUint(b, "timeout_seconds", uint64(e.Timeout/time.Second))
	}
	b = appendJSONStatus(b, e.Status)
	b = appendJSONString(b, "nat", e.NAT().String())
	b = appendJSONBool(b, "dns", e.IsDNS())
	b = appendJSONTuple(b, "original", &e.Original, e.Has(conntrack.FieldOriginalZone), e.Has(conntrack.FieldOriginalCount), e.OriginalCounters)
	b = appendJSONTuple(b, "reply", &e.Reply, e.Has(conntrack.FieldReplyZone), e.Has(conntrack.FieldReplyCount), e.ReplyCounters)
	if e.Has(conntrack.FieldMark) {
		b = appendJSONUint(b, "mark", uint64(e.Mark))
	}
	if e.Has(conntrack.FieldZone) {
		b = appendJSONUint(b, "zone", uint64(e.Zone))
	}
	if e.Has(conntrack.FieldID) {
		b = appendJSONUint(b, "id", uint64(e.ID))
	}
	if e.Has(conntrack.FieldUse) {
		b = appendJSONUint(b, "use", uint64(e.Use))
	}
	if e.Has(conntrack.FieldHelper) {
		b = appendJSONString(b, "helper", e.Helper)
	}
	if e.Has(conntrack.FieldSecctx) {
		b = appendJSONString(b, "secctx", e.Secctx)
	}
	if e.Has(conntrack.FieldLabels) {
		b = appendJSONKey(b, "labels")
		b = append(b, `"0x`...)
		b = hex.AppendEncode(b, e.Labels[:])
		b = append(b, `",`...)
	}
	if e.Has(conntrack.FieldMaster) {
		b = appendJSONTuple(b, "master", &e.Master, false, false, conntrack.Counters{})
	}
	if e.PortID != 0 {
		b = appendJSONUint(b, "netlink_portid", uint64(e.PortID))
	}
	if e.Has(conntrack.FieldTimestamp) {
		b = appendJSONTime(b, "start", e.Start)
	}
	if !e.Stop.IsZero() {
		b = appendJSONTime(b, "stop", e.Stop)
	}
	b[len(b)-1] = '}' // every member ends with a comma
	return b
}

func appendJSONTuple(b []byte, key string, t *conntrack.Tuple, zoned, counted bool, c conntrack.Counters) []byte {
	b = appendJSONKey(b, key)
	b = append(b, `{"src":"`...)
	b = t.Src.AppendTo(b)
	b = append(b, `","dst":"`...)
	b = t.Dst.AppendTo(b)
	b = append(b, `",`...)
	switch {
	case t.Proto.HasPorts():
		b = appendJSONUint(b, "sport", uint64(t.SrcPort))
		b = appendJSONUint(b, "dport", uint64(t.DstPort))
	case t.Proto.IsICMP():
		b = appendJSONUint(b, "icmp_type", uint64(t.ICMPType))
		b = appendJSONUint(b, "icmp_code", uint64(t.ICMPCode))
		b = appendJSONUint(b, "icmp_id", uint64(t.ICMPID))
	}
	if zoned {
		b = appendJSONUint(b, "zone", uint64(t.Zone))
	}
	if counted {
		b = appendJSONUint(b, "packets", c.Packets)
		b = appendJSONUint(b, "bytes", c.Bytes)
	}
	b[len(b)-1] = '}'
	return append(b, ',')
}

func appendJSONStatus(b []byte, s conntrack.Status) []byte {
	b = appendJSONKey(b, "status")
	b = append(b, '[')
	for _, name := range statusNames(s) {
		b = append(b, '"')
		b = append(b, name...)
		b = append(b, `",`...)
	}
	if s != 0 {
		b = b[:len(b)-1]
	}
	return append(b, `],`...)
}

func appendJSONKey(b []byte, key string) []byte {
	b = append(b, '"')
	b = append(b, key...)
	return append(b, `":`...)
}

func appendJSONUint(b []byte, key string, v uint64) []byte {
	b = appendJSONKey(b, key)
	b = strconv.AppendUint(b, v, 10)
	return append(b, ',')
}

func appendJSONBool(b []byte, key string, v bool) []byte {
	b = appendJSONKey(b, key)
	b = strconv.AppendBool(b, v)
	return append(b, ',')
}

func appendJSONTime(b []byte, key string, t time.Time) []byte {
	b = appendJSONKey(b, key)
	b = append(b, '"')
	b = t.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, `",`...)
}

func appendJSONString(b []byte, key, s string) []byte {
	b = appendJSONKey(b, key)
	b = appendQuoted(b, s)
	return append(b, ',')
}

// appendQuoted appends a JSON string (RFC 8259 section 7). Helper names and security
// contexts come from other programs and may have any bytes.
func appendQuoted(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < 0x20 || r == 0x7f:
			b = append(b, `\u00`...)
			b = append(b, digits[r>>4], digits[r&0xf])
		default: // the loop turns bytes that are not UTF-8 into U+FFFD
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}
