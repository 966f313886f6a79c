package evaluator

import (
	"encoding/binary"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/legacy"
)

// LegacyRules writes the rules of a legacy chain with the expressions of nf_tables.
func LegacyRules(c legacy.Chain) []nfnl.Rule {
	var out []nfnl.Rule
	for _, r := range c.Rules {
		out = append(out, LegacyRule(r))
	}
	return out
}

// LegacyRule writes a legacy rule with the expressions of nf_tables.
func LegacyRule(r legacy.Rule) nfnl.Rule {
	return nfnl.Rule{Handle: uint64(r.Place), Comment: r.Comment(), Exprs: LegacyExpressions(r)}
}

// LegacyExpressions writes a rule with the expressions of nf_tables.
func LegacyExpressions(r legacy.Rule) []nfnl.Expression {
	var out []nfnl.Expression
	out = append(out, deviceExprs(unix.NFT_META_IIFNAME, r.Input)...)
	out = append(out, deviceExprs(unix.NFT_META_OIFNAME, r.Output)...)
	out = append(out, addressExprs(r.Source, false)...)
	out = append(out, addressExprs(r.Destination, true)...)
	if r.Proto != 0 {
		out = append(out, metaExpr(unix.NFT_META_L4PROTO), cmpExpr(r.NotProto, []byte{r.Proto}))
	}
	if r.Fragment || r.NotFragment {
		out = append(out, nfnl.Expression{Name: "fragment"}) // a response may be fragmented
	}
	for _, m := range r.Matches {
		out = append(out, nfnl.Expression{Name: "match", Attrs: map[uint16][]byte{
			unix.NFTA_MATCH_NAME: []byte(m.Name), unix.NFTA_MATCH_REV: word(uint32(m.Revision)), unix.NFTA_MATCH_INFO: m.Info,
		}})
	}
	switch {
	case r.Verdict != nil:
		out = append(out, nfnl.Expression{Name: "immediate", Attrs: map[uint16][]byte{
			unix.NFTA_IMMEDIATE_DREG: word(unix.NFT_REG_VERDICT),
			unix.NFTA_IMMEDIATE_DATA: nested(unix.NFTA_DATA_VERDICT, verdictData(*r.Verdict)),
		}})
	case r.Target.Name != "":
		out = append(out, nfnl.Expression{Name: "target", Attrs: map[uint16][]byte{
			unix.NFTA_TARGET_NAME: []byte(r.Target.Name), unix.NFTA_TARGET_REV: word(uint32(r.Target.Revision)), unix.NFTA_TARGET_INFO: r.Target.Info,
		}})
	}
	return out
}

func deviceExprs(key uint32, d legacy.Interface) []nfnl.Expression {
	if d.Name == "" && !d.Not {
		return nil
	}
	name := nfnl.DeviceKey(d.Name)
	if d.Prefix {
		name = name[:len(d.Name)]
	}
	return []nfnl.Expression{metaExpr(key), cmpExpr(d.Not, name)}
}

func addressExprs(m legacy.Masked, destination bool) []nfnl.Expression {
	if !m.Addr.IsValid() {
		return nil
	}
	length := m.Addr.BitLen() / 8
	offset := 12
	if m.Addr.Is6() {
		offset = 8
	}
	if destination {
		offset += length
	}
	reg := word(unix.NFT_REG_1)
	load := nfnl.Expression{Name: "payload", Attrs: map[uint16][]byte{
		unix.NFTA_PAYLOAD_DREG: reg, unix.NFTA_PAYLOAD_BASE: word(unix.NFT_PAYLOAD_NETWORK_HEADER),
		unix.NFTA_PAYLOAD_OFFSET: word(uint32(offset)), unix.NFTA_PAYLOAD_LEN: word(uint32(length)),
	}}
	if m.Whole() {
		return []nfnl.Expression{load, cmpExpr(m.Not, m.Addr.AsSlice())}
	}
	return []nfnl.Expression{
		load,
		{Name: "bitwise", Attrs: map[uint16][]byte{
			unix.NFTA_BITWISE_SREG: reg, unix.NFTA_BITWISE_DREG: reg, unix.NFTA_BITWISE_LEN: word(uint32(length)),
			unix.NFTA_BITWISE_MASK: nested(unix.NFTA_DATA_VALUE, m.Mask.AsSlice()),
			unix.NFTA_BITWISE_XOR:  nested(unix.NFTA_DATA_VALUE, make([]byte, length)),
		}},
		cmpExpr(m.Not, m.Addr.AsSlice()),
	}
}

func metaExpr(key uint32) nfnl.Expression {
	return nfnl.Expression{Name: "meta", Attrs: map[uint16][]byte{unix.NFTA_META_KEY: word(key), unix.NFTA_META_DREG: word(unix.NFT_REG_1)}}
}

func cmpExpr(not bool, value []byte) nfnl.Expression {
	op := uint32(unix.NFT_CMP_EQ)
	if not {
		op = unix.NFT_CMP_NEQ
	}
	return nfnl.Expression{Name: "cmp", Attrs: map[uint16][]byte{
		unix.NFTA_CMP_SREG: word(unix.NFT_REG_1), unix.NFTA_CMP_OP: word(op), unix.NFTA_CMP_DATA: nested(unix.NFTA_DATA_VALUE, value),
	}}
}

func verdictData(v legacy.Verdict) []byte {
	code := map[legacy.VerdictCode]int32{
		legacy.Accept: nfnl.VerdictAccept, legacy.Drop: nfnl.VerdictDrop, legacy.Queue: nfnl.VerdictQueue,
		legacy.Return: nfnl.VerdictReturn, legacy.Jump: nfnl.VerdictJump, legacy.Goto: nfnl.VerdictGoto,
	}[v.Code]
	return append(nested(unix.NFTA_VERDICT_CODE, word(uint32(code))), nested(unix.NFTA_VERDICT_CHAIN, []byte(v.Chain))...)
}

// nested encodes one attribute.
func nested(typ uint16, value []byte) []byte {
	b, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: typ, Data: value}})
	if err != nil {
		panic(err) // a value of a few bytes
	}
	return b
}

// word encodes a 32-bit attribute of nf_tables.
func word(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
