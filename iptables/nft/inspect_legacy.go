package nft

import (
	"encoding/binary"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables/legacy"
)

func legacyRules(c legacy.Chain) []dumpedRule {
	var out []dumpedRule
	for _, r := range c.Rules {
		out = append(out, legacyRule(r))
	}
	return out
}

func legacyRule(r legacy.Rule) dumpedRule {
	return dumpedRule{handle: uint64(r.Place), comment: r.Comment(), exprs: legacyExprs(r)}
}

// legacyExprs writes a rule with the expressions of nf_tables.
func legacyExprs(r legacy.Rule) []expression {
	var out []expression
	out = append(out, deviceExprs(unix.NFT_META_IIFNAME, r.Input)...)
	out = append(out, deviceExprs(unix.NFT_META_OIFNAME, r.Output)...)
	out = append(out, addressExprs(r.Source, false)...)
	out = append(out, addressExprs(r.Destination, true)...)
	if r.Proto != 0 {
		out = append(out, metaExpr(unix.NFT_META_L4PROTO), cmpExpr(r.NotProto, []byte{r.Proto}))
	}
	if r.Fragment || r.NotFragment {
		out = append(out, expression{name: "fragment"}) // may hold for a response
	}
	for _, m := range r.Matches {
		out = append(out, expression{"match", map[uint16][]byte{
			unix.NFTA_MATCH_NAME: []byte(m.Name), unix.NFTA_MATCH_REV: word(uint32(m.Revision)), unix.NFTA_MATCH_INFO: m.Info,
		}})
	}
	switch {
	case r.Verdict != nil:
		out = append(out, expression{"immediate", map[uint16][]byte{
			unix.NFTA_IMMEDIATE_DREG: word(unix.NFT_REG_VERDICT),
			unix.NFTA_IMMEDIATE_DATA: nested(unix.NFTA_DATA_VERDICT, verdictData(*r.Verdict)),
		}})
	case r.Target.Name != "":
		out = append(out, expression{"target", map[uint16][]byte{
			unix.NFTA_TARGET_NAME: []byte(r.Target.Name), unix.NFTA_TARGET_REV: word(uint32(r.Target.Revision)), unix.NFTA_TARGET_INFO: r.Target.Info,
		}})
	}
	return out
}

func deviceExprs(key uint32, d legacy.Interface) []expression {
	if d.Name == "" && !d.Not {
		return nil
	}
	name := deviceKey(d.Name)
	if d.Prefix {
		name = name[:len(d.Name)]
	}
	return []expression{metaExpr(key), cmpExpr(d.Not, name)}
}

func addressExprs(m legacy.Masked, destination bool) []expression {
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
	load := expression{"payload", map[uint16][]byte{
		unix.NFTA_PAYLOAD_DREG: reg, unix.NFTA_PAYLOAD_BASE: word(unix.NFT_PAYLOAD_NETWORK_HEADER),
		unix.NFTA_PAYLOAD_OFFSET: word(uint32(offset)), unix.NFTA_PAYLOAD_LEN: word(uint32(length)),
	}}
	if m.Whole() {
		return []expression{load, cmpExpr(m.Not, m.Addr.AsSlice())}
	}
	return []expression{
		load,
		{"bitwise", map[uint16][]byte{
			unix.NFTA_BITWISE_SREG: reg, unix.NFTA_BITWISE_DREG: reg, unix.NFTA_BITWISE_LEN: word(uint32(length)),
			unix.NFTA_BITWISE_MASK: nested(unix.NFTA_DATA_VALUE, m.Mask.AsSlice()),
			unix.NFTA_BITWISE_XOR:  nested(unix.NFTA_DATA_VALUE, make([]byte, length)),
		}},
		cmpExpr(m.Not, m.Addr.AsSlice()),
	}
}

func metaExpr(key uint32) expression {
	return expression{"meta", map[uint16][]byte{unix.NFTA_META_KEY: word(key), unix.NFTA_META_DREG: word(unix.NFT_REG_1)}}
}

func cmpExpr(not bool, value []byte) expression {
	op := uint32(unix.NFT_CMP_EQ)
	if not {
		op = unix.NFT_CMP_NEQ
	}
	return expression{"cmp", map[uint16][]byte{
		unix.NFTA_CMP_SREG: word(unix.NFT_REG_1), unix.NFTA_CMP_OP: word(op), unix.NFTA_CMP_DATA: nested(unix.NFTA_DATA_VALUE, value),
	}}
}

func verdictData(v legacy.Verdict) []byte {
	code := map[legacy.VerdictCode]int32{
		legacy.Accept: verdictAccept, legacy.Drop: verdictDrop, legacy.Queue: verdictQueue,
		legacy.Return: verdictReturn, legacy.Jump: verdictJump, legacy.Goto: verdictGoto,
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

// word encodes 32 bits as nf_tables has them in attributes.
func word(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
