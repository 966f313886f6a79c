package failover

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// Outside are the clients that the failover table does not serve: those whose packets
// come in over an uplink, except those of the sources. Their queries to a listen
// address are dropped, as while an instance serves there. The zero value serves all
// clients.
type Outside struct {
	Uplinks []string // devices
	Sources []netip.Prefix
}

// outsideChain is the chain for packets that come in over an uplink.
const outsideChain = "outside"

func (o Outside) normalize() Outside {
	if len(o.Uplinks) == 0 {
		return Outside{}
	}
	var sources []netip.Prefix
	for _, p := range o.Sources {
		sources = append(sources, p.Masked())
	}
	slices.SortFunc(sources, func(a, b netip.Prefix) int { return strings.Compare(a.String(), b.String()) })
	uplinks := slices.Clone(o.Uplinks)
	slices.Sort(uplinks)
	return Outside{Uplinks: slices.Compact(uplinks), Sources: slices.Compact(sources)}
}

// lead returns the rules that jump to the chain.
func (o Outside) lead() (out []failoverRule) {
	for _, device := range o.Uplinks {
		var r failoverRule
		r.add(sprintf("iifname %q", device), library(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: unix.NFT_REG_1}), equals(nfnl.DeviceKey(device)))
		r.add("jump "+outsideChain, library(&expr.Verdict{Kind: expr.VerdictJump, Chain: outsideChain}))
		out = append(out, r)
	}
	return out
}

// rules returns the rules of the chain.
func (o Outside) rules(pairs []Pair) (out []failoverRule) {
	for _, p := range o.Sources {
		var r failoverRule
		text, exprs := sourceIs(p)
		r.add(text, exprs...)
		r.add("return", library(&expr.Verdict{Kind: expr.VerdictReturn}))
		out = append(out, r)
	}
	for _, p := range pairs {
		for _, port := range p.Ports {
			for _, proto := range []iptables.Proto{iptables.UDP, iptables.TCP} {
				r := queryTo(p.Listen, proto, port)
				r.add("drop", library(&expr.Verdict{Kind: expr.VerdictDrop}))
				out = append(out, r)
			}
		}
	}
	return out
}

// sourceIs matches a source prefix as nft does: a prefix of whole bytes loads only
// these bytes, others are masked.
func sourceIs(p netip.Prefix) (text string, exprs []failoverExpr) {
	ip := ipHeaderOf(p.Addr())
	exprs = ip.isFamily()
	if p.Bits() == 0 {
		return "meta nfproto " + iptables.FamilyOf(p.Addr()).String(), exprs
	}
	text = sprintf("%s saddr %s", ip.name, p)
	if p.IsSingleIP() {
		text = sprintf("%s saddr %s", ip.name, p.Addr())
	}
	network := p.Addr().AsSlice()
	if p.Bits()%8 == 0 {
		ip.length = uint32(p.Bits() / 8)
		return text, append(exprs, ip.load(ip.saddr), equals(network[:ip.length]))
	}
	mask := make([]byte, len(network))
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return text, append(exprs, ip.load(ip.saddr), library(&expr.Bitwise{
		SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: ip.length, Mask: mask, Xor: make([]byte, len(mask)),
	}), equals(network))
}

// The numbers of expressions of the rules that outside reads.
const (
	leadExprs   = 3
	wholeExprs  = 3 // a source that is a whole family
	bytesExprs  = 5 // a source prefix of whole bytes
	maskedExprs = 6 // other sources
)

// outside reads which clients the table does not serve.
func (d *failoverDump) outside() (o Outside) {
	for _, rule := range d.rules["prerouting"] {
		exprs, err := netlink.UnmarshalAttributes(rule)
		if err == nil && len(exprs) == leadExprs {
			o.Uplinks = append(o.Uplinks, strings.TrimRight(string(exprValue(exprs[1])), "\x00"))
		}
	}
	for _, rule := range d.rules[outsideChain] {
		exprs, err := netlink.UnmarshalAttributes(rule)
		if err != nil || len(exprs) > maskedExprs || len(exprs) < wholeExprs {
			continue
		}
		network := make([]byte, 4)
		if nfproto := exprValue(exprs[1]); len(nfproto) == 1 && nfproto[0] == unix.NFPROTO_IPV6 {
			network = make([]byte, 16)
		}
		length := 0
		switch len(exprs) {
		case bytesExprs:
			length = 8 * copy(network, exprValue(exprs[3]))
		case maskedExprs:
			for _, b := range exprValue(exprs[3]) {
				length += bits.OnesCount8(b)
			}
			copy(network, exprValue(exprs[4]))
		}
		a, _ := netip.AddrFromSlice(network)
		o.Sources = append(o.Sources, netip.PrefixFrom(a, length))
	}
	return o.normalize()
}

// queryTo begins a rule for queries to a listen address.
func queryTo(listen netip.Addr, proto iptables.Proto, port uint16) (r failoverRule) {
	ip := ipHeaderOf(listen)
	r.add("", ip.isFamily()...)
	r.add(sprintf("%s daddr %s", ip.name, listen), ip.load(ip.daddr), equals(listen.AsSlice()))
	r.add("", protoIs(proto)...)
	r.add(sprintf("%s dport %d", proto, port), loadPort(2), equals(binary.BigEndian.AppendUint16(nil, port)))
	return r
}
