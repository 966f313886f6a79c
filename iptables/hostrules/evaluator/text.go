package evaluator

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// RuleText prints a rule, in the syntax of nft if it has one. An unknown expression is
// named in brackets, so that the text leaves out no condition.
func RuleText(r nfnl.Rule, v6 bool) string {
	t := ruleWriter{v6: v6, field: map[uint32]ruleField{}}
	for _, e := range r.Exprs {
		t.add(e)
	}
	if r.Comment != "" {
		t.words = append(t.words, "comment "+strconv.Quote(r.Comment))
	}
	return strings.Join(t.words, " ")
}

// ruleField is the field in a register: its name, and how to print its values.
type ruleField struct {
	name string
	show func([]byte) string
	mask []byte
}

type ruleWriter struct {
	v6    bool
	words []string
	field map[uint32]ruleField // by register
}

func (t *ruleWriter) write(format string, args ...any) {
	t.words = append(t.words, fmt.Sprintf(format, args...))
}

func (t *ruleWriter) add(e nfnl.Expression) {
	switch e.Name {
	case "payload":
		if e.Has(unix.NFTA_PAYLOAD_SREG) {
			t.write("[writes payload]")
			return
		}
		t.field[e.Number(unix.NFTA_PAYLOAD_DREG)] = t.payload(e)
	case "meta":
		if !e.Has(unix.NFTA_META_DREG) {
			t.write("[meta set]")
			return
		}
		t.field[e.Number(unix.NFTA_META_DREG)] = metaField(e.Number(unix.NFTA_META_KEY))
	case "ct":
		if !e.Has(unix.NFTA_CT_DREG) {
			if effect := ctEffect(e); effect == EffectZone {
				t.write("%s", effect)
			} else {
				t.write("[%s]", effect)
			}
			return
		}
		t.field[e.Number(unix.NFTA_CT_DREG)] = ctField(e.Number(unix.NFTA_CT_KEY))
	case "bitwise":
		f := t.field[e.Number(unix.NFTA_BITWISE_SREG)]
		f.mask = e.Value(unix.NFTA_BITWISE_MASK)
		t.field[e.Number(unix.NFTA_BITWISE_DREG)] = f
	case "cmp":
		t.compare(t.field[e.Number(unix.NFTA_CMP_SREG)], e)
	case "range":
		f := t.field[e.Number(unix.NFTA_RANGE_SREG)]
		not := ""
		if e.Number(unix.NFTA_RANGE_OP) != unix.NFT_RANGE_EQ {
			not = "!= "
		}
		t.write("%s %s%s-%s", f.named(), not, f.value(e.Value(unix.NFTA_RANGE_FROM_DATA)), f.value(e.Value(unix.NFTA_RANGE_TO_DATA)))
	case "lookup":
		not := ""
		if e.Number(unix.NFTA_LOOKUP_FLAGS)&unix.NFT_LOOKUP_F_INV != 0 {
			not = "!= "
		}
		t.write("%s %s@%s", t.field[e.Number(unix.NFTA_LOOKUP_SREG)].named(), not, e.SetName())
	case "immediate":
		if e.Number(unix.NFTA_IMMEDIATE_DREG) == unix.NFT_REG_VERDICT {
			t.write("%s", nfnl.ReadVerdict(nfnl.Attributes(e.Attrs[unix.NFTA_IMMEDIATE_DATA])[unix.NFTA_DATA_VERDICT]))
		}
	case "match":
		t.match(e)
	case "target":
		t.write("%s", e.Extension())
		if e.Extension() == "CT" {
			notrack, zone := ctTarget(e.Attrs[unix.NFTA_TARGET_INFO])
			if notrack {
				zone = "--notrack"
			}
			if zone != "" {
				t.write("%s", zone)
			}
		}
	case "counter":
	case "notrack", "reject", "queue", "log", "tproxy":
		t.write("%s", e.Name)
	default:
		t.write("[%s]", e.Name)
	}
}

func (t *ruleWriter) compare(f ruleField, e nfnl.Expression) {
	data := e.Value(unix.NFTA_CMP_DATA)
	// nft leaves out a match that follows from the next field.
	if f.name == "meta nfproto" || f.name == "meta l4proto" {
		t.write("%s %s", f.name, f.value(data))
		return
	}
	op := map[uint32]string{
		unix.NFT_CMP_NEQ: "!= ", unix.NFT_CMP_LT: "< ", unix.NFT_CMP_LTE: "<= ", unix.NFT_CMP_GT: "> ", unix.NFT_CMP_GTE: ">= ",
	}[e.Number(unix.NFTA_CMP_OP)]
	if f.mask != nil && strings.HasSuffix(f.name, "addr") {
		t.write("%s %s%s/%d", f.named(), op, f.value(data), ones(f.mask))
		return
	}
	if f.mask != nil {
		t.write("%s & 0x%s %s0x%s", f.named(), hex.EncodeToString(f.mask), op, hex.EncodeToString(data))
		return
	}
	t.write("%s %s%s", f.named(), op, f.value(data))
}

func (t *ruleWriter) payload(e nfnl.Expression) ruleField {
	base, offset, length := e.Number(unix.NFTA_PAYLOAD_BASE), e.Number(unix.NFTA_PAYLOAD_OFFSET), e.Number(unix.NFTA_PAYLOAD_LEN)
	switch base {
	case unix.NFT_PAYLOAD_NETWORK_HEADER:
		// A prefix of whole bytes has a shorter load instead of a mask.
		switch {
		case !t.v6 && offset == 12 && length <= 4:
			return ruleField{name: "ip saddr", show: addressText(4)}
		case !t.v6 && offset == 16 && length <= 4:
			return ruleField{name: "ip daddr", show: addressText(4)}
		case !t.v6 && offset == 9 && length == 1:
			return ruleField{name: "ip protocol", show: protocolText}
		case t.v6 && offset == 8 && length <= 16:
			return ruleField{name: "ip6 saddr", show: addressText(16)}
		case t.v6 && offset == 24 && length <= 16:
			return ruleField{name: "ip6 daddr", show: addressText(16)}
		case t.v6 && offset == 6 && length == 1:
			return ruleField{name: "ip6 nexthdr", show: protocolText}
		}
	case unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		switch {
		case offset == 0 && length == 2:
			return ruleField{name: "th sport", show: decimalText}
		case offset == 2 && length == 2:
			return ruleField{name: "th dport", show: decimalText}
		}
	}
	name := map[uint32]string{
		unix.NFT_PAYLOAD_LL_HEADER: "ll", unix.NFT_PAYLOAD_NETWORK_HEADER: "nh", unix.NFT_PAYLOAD_TRANSPORT_HEADER: "th",
	}[base]
	return ruleField{name: fmt.Sprintf("@%s,%d,%d", name, offset*8, length*8)}
}

func metaField(key uint32) ruleField {
	switch key {
	case unix.NFT_META_NFPROTO:
		return ruleField{name: "meta nfproto", show: func(b []byte) string {
			if len(b) == 1 && b[0] == unix.NFPROTO_IPV6 {
				return "ipv6"
			}
			return "ipv4"
		}}
	case unix.NFT_META_PROTOCOL:
		return ruleField{name: "meta protocol"}
	case unix.NFT_META_L4PROTO:
		return ruleField{name: "meta l4proto", show: protocolText}
	case unix.NFT_META_IIFNAME:
		return ruleField{name: "iifname", show: quotedText}
	case unix.NFT_META_OIFNAME:
		return ruleField{name: "oifname", show: quotedText}
	case unix.NFT_META_IIF:
		return ruleField{name: "iif", show: hostDecimalText}
	case unix.NFT_META_OIF:
		return ruleField{name: "oif", show: hostDecimalText}
	case unix.NFT_META_MARK:
		return ruleField{name: "meta mark", show: hostDecimalText}
	case unix.NFT_META_SKUID:
		return ruleField{name: "meta skuid", show: hostDecimalText}
	}
	return ruleField{name: fmt.Sprintf("[meta %d]", key)}
}

func ctField(key uint32) ruleField {
	if key == unix.NFT_CT_STATE {
		return ruleField{name: "ct state"}
	}
	return ruleField{name: fmt.Sprintf("[ct %d]", key)}
}

func (f ruleField) named() string {
	if f.name == "" {
		return "[register]"
	}
	return f.name
}

func (f ruleField) value(b []byte) string {
	if f.show == nil {
		return "0x" + hex.EncodeToString(b)
	}
	return f.show(b)
}

func addressText(length int) func([]byte) string {
	return func(b []byte) string {
		full := make([]byte, length)
		copy(full, b)
		a, _ := netip.AddrFromSlice(full)
		if len(b) < length {
			return netip.PrefixFrom(a, len(b)*8).String()
		}
		return a.String()
	}
}

func ones(mask []byte) int {
	n := 0
	for _, b := range mask {
		for ; b&0x80 != 0; b <<= 1 {
			n++
		}
	}
	return n
}

func protocolText(b []byte) string {
	names := map[byte]string{unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_ICMPV6: "ipv6-icmp"}
	if len(b) == 1 && names[b[0]] != "" {
		return names[b[0]]
	}
	return decimalText(b)
}

func decimalText(b []byte) string {
	var n uint64
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	return strconv.FormatUint(n, 10)
}

func hostDecimalText(b []byte) string {
	if len(b) != 4 {
		return "0x" + hex.EncodeToString(b)
	}
	return strconv.FormatUint(uint64(binary.NativeEndian.Uint32(b)), 10)
}

func quotedText(b []byte) string {
	name, ended := strings.CutSuffix(string(b), "\x00")
	name = strings.TrimRight(name, "\x00")
	if !ended {
		name += "*" // a shorter comparison matches a prefix
	}
	return strconv.Quote(name)
}

// match prints a match of iptables.
func (t *ruleWriter) match(e nfnl.Expression) {
	name, info := e.Extension(), e.Attrs[unix.NFTA_MATCH_INFO]
	switch {
	case name == "comment":
	case (name == "udp" || name == "tcp") && len(info) >= 9:
		port := func(at int) uint16 { return binary.NativeEndian.Uint16(info[at:]) }
		invert := info[8]
		if name == "tcp" && len(info) >= 12 {
			invert = info[11]
		}
		for i, side := range []string{"sport", "dport"} {
			from, to := port(4*i), port(4*i+2)
			not := ""
			if invert&(1<<i) != 0 {
				not = "!= "
			}
			switch {
			case from == 0 && to == 0xffff:
			case from == to:
				t.write("th %s %s%d", side, not, from)
			default:
				t.write("th %s %s%d-%d", side, not, from, to)
			}
		}
	case name == "conntrack" && stateText(info) != "":
		t.write("%s", stateText(info))
	default:
		t.write("[match %s]", name)
	}
}

// stateText prints a match of xt_conntrack on the state alone.
func stateText(info []byte) string {
	mask, inverted, only := matchedStates(info)
	if !only {
		return ""
	}
	var words []string
	// XT_CONNTRACK_STATE_INVALID and so on.
	for bit, name := range []string{"invalid", "established", "related", "new", "", "", "snat", "dnat", "untracked"} {
		if mask&(1<<bit) != 0 && name != "" {
			words = append(words, name)
		}
	}
	not := ""
	if inverted {
		not = "!= "
	}
	return "ct state " + not + strings.Join(words, ",")
}
