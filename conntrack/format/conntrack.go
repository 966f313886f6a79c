package format

import (
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
)

// conntrackLines writes the same bytes as `conntrack -L` and `conntrack -E` with
// libnetfilter_conntrack 1.0.9.
type conntrackLines struct {
	now     func() time.Time           // the end of delta-time
	program func(portID uint32) string // the name of a process; "" if not known
}

func (conntrackLines) begin(b []byte) []byte       { return b }
func (conntrackLines) end(b []byte, _ bool) []byte { return b }

func (c conntrackLines) entry(b []byte, e *conntrack.Entry, event conntrack.EventType, _ bool) []byte {
	if event != 0 {
		name := "[" + event.String() + "]"
		b = appendPadLeft(b, name, 9)
		b = append(b, ' ')
	}
	b = appendPadRight(b, conntrackProtocol(e.Original.Proto), 8)
	b = append(b, ' ')
	b = strconv.AppendUint(b, uint64(e.Original.Proto), 10)
	b = append(b, ' ')
	if e.Has(conntrack.FieldTimeout) {
		b = strconv.AppendUint(b, uint64(e.Timeout/time.Second), 10)
		b = append(b, ' ')
	}
	if e.Has(conntrack.FieldTCP) || e.Has(conntrack.FieldSCTP) || e.Has(conntrack.FieldDCCP) {
		b = append(b, e.State()...)
		b = append(b, ' ')
	}
	b = appendConntrackTuple(b, &e.Original)
	if e.Has(conntrack.FieldOriginalZone) {
		b = appendField(b, "zone-orig=", uint64(e.Original.Zone))
	}
	if e.Has(conntrack.FieldOriginalCount) {
		b = appendConntrackCounters(b, e.OriginalCounters)
	}
	if e.Has(conntrack.FieldStatus) && e.Status&conntrack.StatusSeenReply == 0 {
		b = append(b, "[UNREPLIED] "...)
	}
	b = appendConntrackTuple(b, &e.Reply)
	if e.Has(conntrack.FieldReplyZone) {
		b = appendField(b, "zone-reply=", uint64(e.Reply.Zone))
	}
	if e.Has(conntrack.FieldReplyCount) {
		b = appendConntrackCounters(b, e.ReplyCounters)
	}
	switch {
	case e.Status&conntrack.StatusHWOffload != 0:
		b = append(b, "[HW_OFFLOAD] "...)
	case e.Status&conntrack.StatusOffload != 0:
		b = append(b, "[OFFLOAD] "...)
	case e.Status&conntrack.StatusAssured != 0:
		b = append(b, "[ASSURED] "...)
	}
	if e.Has(conntrack.FieldMark) {
		b = appendField(b, "mark=", uint64(e.Mark))
	}
	if e.Has(conntrack.FieldSecctx) {
		b = append(b, "secctx="...)
		b = append(b, e.Secctx...)
		b = append(b, ' ')
	}
	if e.Has(conntrack.FieldZone) {
		b = appendField(b, "zone=", uint64(e.Zone))
	}
	if e.Has(conntrack.FieldTimestamp) {
		b = appendField(b, "delta-time=", c.age(e))
	}
	if e.Has(conntrack.FieldHelper) {
		b = append(b, "helper="...)
		b = append(b, e.Helper...)
		b = append(b, ' ')
	}
	if e.Has(conntrack.FieldUse) {
		b = appendField(b, "use=", uint64(e.Use))
	}
	if e.PortID != 0 {
		b = append(b, "[USERSPACE] "...)
		b = appendField(b, "portid=", uint64(e.PortID))
		if name := c.program(e.PortID); name != "" {
			b = append(b, "progname="...)
			b = append(b, name...)
			b = append(b, ' ')
		}
	}
	b[len(b)-1] = '\n' // every part ends with a space
	return b
}

// age returns the age of an entry in whole seconds, or its lifetime if it was destroyed.
func (c conntrackLines) age(e *conntrack.Entry) uint64 {
	if !e.Stop.IsZero() {
		return uint64(max(0, e.Stop.Sub(e.Start)/time.Second))
	}
	return uint64(max(0, c.now().Unix()-e.Start.Unix()))
}

// programName returns the name of the process with the ID portID. The kernel uses it as the
// netlink port of the first socket of a process.
func programName(portID uint32) string {
	b, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(portID), 10) + "/comm")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func conntrackProtocol(p conntrack.Protocol) string {
	switch p {
	case conntrack.TCP, conntrack.UDP, conntrack.UDPLite, conntrack.ICMP, conntrack.ICMPv6,
		conntrack.SCTP, conntrack.GRE, conntrack.DCCP:
		return p.String()
	}
	return "unknown"
}

func appendConntrackTuple(b []byte, t *conntrack.Tuple) []byte {
	b = append(b, "src="...)
	b = appendAddrC(b, t.Src)
	b = append(b, " dst="...)
	b = appendAddrC(b, t.Dst)
	b = append(b, ' ')
	switch {
	case t.Proto == conntrack.GRE:
		b = append(b, "srckey=0x"...)
		b = strconv.AppendUint(b, uint64(t.SrcPort), 16)
		b = append(b, " dstkey=0x"...)
		b = strconv.AppendUint(b, uint64(t.DstPort), 16)
		b = append(b, ' ')
	case t.Proto.HasPorts():
		b = appendField(b, "sport=", uint64(t.SrcPort))
		b = appendField(b, "dport=", uint64(t.DstPort))
	case t.Proto.IsICMP():
		b = appendField(b, "type=", uint64(t.ICMPType))
		b = appendField(b, "code=", uint64(t.ICMPCode))
		b = appendField(b, "id=", uint64(t.ICMPID))
	}
	return b
}

// appendAddrC appends an address in the form of inet_ntop(3) of glibc. Unlike netip, it
// writes IPv4-compatible addresses (RFC 4291 section 2.5.5.1) with dots.
func appendAddrC(b []byte, a netip.Addr) []byte {
	if a.Is6() {
		raw := a.As16()
		if [12]byte(raw[:12]) == [12]byte{} && (raw[12] != 0 || raw[13] != 0) {
			b = append(b, "::"...)
			return netip.AddrFrom4([4]byte(raw[12:])).AppendTo(b)
		}
	}
	return a.AppendTo(b)
}

func appendConntrackCounters(b []byte, c conntrack.Counters) []byte {
	b = appendField(b, "packets=", c.Packets)
	return appendField(b, "bytes=", c.Bytes)
}

func appendField(b []byte, name string, v uint64) []byte {
	b = append(b, name...)
	b = strconv.AppendUint(b, v, 10)
	return append(b, ' ')
}

const blanks = "                                                "

func appendPadRight(b []byte, s string, width int) []byte {
	b = append(b, s...)
	return append(b, blanks[:min(max(0, width-len(s)), len(blanks))]...)
}

func appendPadLeft(b []byte, s string, width int) []byte {
	b = append(b, blanks[:min(max(0, width-len(s)), len(blanks))]...)
	return append(b, s...)
}
