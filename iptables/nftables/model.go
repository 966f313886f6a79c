package nftables

import (
	"fmt"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// The ruleset is a value: chains of rules, each a list of statements. A
// statement knows how the kernel's expressions are made of it and how nft prints
// it, and tests teach it what it does to a packet, so that transaction, printer
// and tracer cannot drift apart.
type statement interface {
	exprs(rs *ruleset) []expr.Any
	text(r rule) string
}

type rule []statement

type chain struct {
	name  string
	hook  *iptables.Hook // nil: no base chain
	rules []rule
}

// field is a part of a packet that set keys are made of.
type field uint8

const (
	saddr field = iota
	daddr
	sport
	dport
	l4proto
	inDevice
)

// setKind is one set of the ruleset; there is one per family unless any is set.
type setKind struct {
	name    string
	key     []field
	dynamic bool   // filled by packets, with a timeout
	ranges  bool   // elements are intervals
	any     bool   // not bound to a family
	size    uint32 // for how many elements there is room; 0: see setSize
}

var (
	listenSet  = setKind{name: "listen", key: []field{daddr, l4proto, dport}}
	liveSet    = setKind{name: "live", key: []field{daddr}, dynamic: true, size: 1024}
	leaseSet   = setKind{name: "lease", key: []field{saddr, l4proto, sport, daddr, dport}}
	checkSet   = setKind{name: "check", key: []field{saddr, l4proto, sport}}
	exemptSet  = setKind{name: "exempt", key: []field{saddr, l4proto, sport, daddr, dport}, dynamic: true}
	heldSet    = setKind{name: "held", key: []field{saddr, l4proto, sport, daddr, dport}, dynamic: true}
	openingSet = setKind{name: "opening", key: []field{saddr, l4proto, sport, daddr, dport}, dynamic: true}
	closingSet = setKind{name: "closing", key: []field{saddr, l4proto, sport, daddr, dport}, dynamic: true}
	drainSet   = setKind{name: "draining", key: []field{daddr}}
	unownedSet = setKind{name: "unowned", key: []field{daddr}}
	sourceSet  = setKind{name: "sources", key: []field{saddr}, ranges: true}
	uplinkSet  = setKind{name: "uplinks", key: []field{inDevice}, any: true}
	askedSet   = setKind{name: "asked", key: []field{inDevice}, dynamic: true, any: true}
	arrivedSet = setKind{name: "arrived", key: []field{inDevice}, dynamic: true, any: true}
	asideSet   = setKind{name: "aside", key: []field{inDevice}, dynamic: true, any: true}
)

var setKinds = []setKind{
	listenSet, liveSet, leaseSet, checkSet, exemptSet, heldSet, openingSet, closingSet, drainSet, unownedSet, sourceSet, uplinkSet,
	askedSet, arrivedSet, asideSet,
}

// setSize bounds what packets can put into a set; a full set takes no more. It is
// what the kernel takes where a set is made without a size (nft_dynset_init). With a
// size it would reserve room for all at once, 2 MB for each set, and every dump would
// walk through it.
const setSize = 65535

// instance names the set of a family.
func (k setKind) instance(f iptables.Family) string {
	if k.any {
		return k.name
	}
	return fmt.Sprintf("%s%d", k.name, f)
}

func (k setKind) families() []iptables.Family {
	if k.any {
		return nfnl.Families[:1]
	}
	return nfnl.Families
}

// datatype is the kernel's type of the key.
func (k setKind) datatype(f iptables.Family) nftables.SetDatatype {
	var types []nftables.SetDatatype
	for _, part := range k.key {
		types = append(types, part.datatype(f))
	}
	if len(types) == 1 {
		return types[0]
	}
	return nftables.MustConcatSetType(types...)
}

func (fd field) datatype(f iptables.Family) nftables.SetDatatype {
	switch fd {
	case saddr, daddr:
		if f == iptables.IPv6 {
			return nftables.TypeIP6Addr
		}
		return nftables.TypeIPAddr
	case sport, dport:
		return nftables.TypeInetService
	case l4proto:
		return nftables.TypeInetProto
	}
	return nftables.TypeIFName
}

// words is the length of the field in 32-bit registers.
func (fd field) words(f iptables.Family) uint32 {
	switch {
	case fd == inDevice, (fd == saddr || fd == daddr) && f == iptables.IPv6:
		return 4
	}
	return 1
}

// load puts the field into registers from reg on.
func (fd field) load(f iptables.Family, reg uint32) expr.Any {
	addrOffset, addrLen := uint32(12), uint32(4)
	if f == iptables.IPv6 {
		addrOffset, addrLen = 8, 16
	}
	switch fd {
	case saddr:
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: addrOffset, Len: addrLen}
	case daddr:
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: addrOffset + addrLen, Len: addrLen}
	case sport:
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2}
	case dport:
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
	case l4proto:
		return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}
	}
	return &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg}
}

// text is the field as nft prints it in a rule.
func (fd field) text(f iptables.Family, r rule) string {
	ip, th := "ip", "th"
	if f == iptables.IPv6 {
		ip = "ip6"
	}
	for _, s := range r {
		if _, ok := s.(tcpFlags); ok {
			th = "tcp" // nft knows the protocol from the flags
		}
	}
	switch fd {
	case saddr:
		return ip + " saddr"
	case daddr:
		return ip + " daddr"
	case sport:
		return th + " sport"
	case dport:
		return th + " dport"
	case l4proto:
		return "meta l4proto"
	}
	return "iifname"
}

// loadKey loads fields into consecutive registers. Register 8 is NFT_REG32_00,
// the first of sixteen with 32 bits.
func loadKey(f iptables.Family, fields []field) []expr.Any {
	var out []expr.Any
	if fields[0] != inDevice {
		out = isFamily(f)
	}
	reg := uint32(unix.NFT_REG32_00)
	for _, fd := range fields {
		out = append(out, fd.load(f, reg))
		reg += fd.words(f)
	}
	return out
}

func keyText(f iptables.Family, fields []field, r rule) string {
	var parts []string
	for _, fd := range fields {
		parts = append(parts, fd.text(f, r))
	}
	return strings.Join(parts, " . ")
}

// in matches a packet whose fields are an element of a set.
type in struct {
	family iptables.Family
	fields []field
	set    setKind
	not    bool
}

func (s in) exprs(rs *ruleset) []expr.Any {
	set := rs.set(s.set, s.family)
	return append(loadKey(s.family, s.fields), &expr.Lookup{
		SourceRegister: unix.NFT_REG32_00, SetName: set.Name, SetID: set.ID, Invert: s.not,
	})
}

func (s in) text(r rule) string {
	not := ""
	if s.not {
		not = "!= "
	}
	return fmt.Sprintf("%s %s@%s", keyText(s.family, s.fields, r), not, s.set.instance(s.family))
}

// put adds a packet's fields to a set; refresh also renews the timeout of an
// element that is there.
type put struct {
	family  iptables.Family
	fields  []field
	set     setKind
	refresh bool
	timeout time.Duration
}

func (s put) exprs(rs *ruleset) []expr.Any {
	set := rs.set(s.set, s.family)
	op := uint32(unix.NFT_DYNSET_OP_ADD)
	if s.refresh {
		op = unix.NFT_DYNSET_OP_UPDATE
	}
	return append(loadKey(s.family, s.fields), &expr.Dynset{
		SrcRegKey: unix.NFT_REG32_00, SetName: set.Name, SetID: set.ID, Operation: op, Timeout: s.timeout,
	})
}

func (s put) text(r rule) string {
	verb := "add"
	if s.refresh {
		verb = "update"
	}
	return fmt.Sprintf("%s @%s { %s timeout %s }", verb, s.set.instance(s.family), keyText(s.family, s.fields, r), nftDuration(s.timeout))
}

// take removes a packet's fields from a set (Linux 5.4). That they are not in it
// is no mismatch.
type take struct {
	family iptables.Family
	fields []field
	set    setKind
}

// dynsetDelete is NFT_DYNSET_OP_DELETE of linux/netfilter/nf_tables.h.
const dynsetDelete = 2

func (s take) exprs(rs *ruleset) []expr.Any {
	set := rs.set(s.set, s.family)
	return append(loadKey(s.family, s.fields), &expr.Dynset{
		SrcRegKey: unix.NFT_REG32_00, SetName: set.Name, SetID: set.ID, Operation: dynsetDelete,
	})
}

func (s take) text(r rule) string {
	return fmt.Sprintf("delete @%s { %s }", s.set.instance(s.family), keyText(s.family, s.fields, r))
}

// nftDuration prints a time as nft does: 1s, 1m30s, 250ms.
func nftDuration(d time.Duration) string {
	var b strings.Builder
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}, {time.Millisecond, "ms"}} {
		if n := d / u.unit; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			d -= n * u.unit
		}
	}
	return b.String()
}

// onLo matches what comes from or goes to the loopback device, whose index is
// 1 in every network namespace. Nothing that a pod sends arrives on it.
type onLo iptables.Hook

func (s onLo) exprs(*ruleset) []expr.Any {
	key := expr.MetaKeyIIF
	if iptables.Hook(s) == iptables.Output {
		key = expr.MetaKeyOIF
	}
	return metaIs(key, nfnl.NativeUint32(1))
}

func (s onLo) text(rule) string {
	if iptables.Hook(s) == iptables.Output {
		return `oif "lo"`
	}
	return `iif "lo"`
}

// whole matches packets of a family that are no fragments and, in IPv4, have no
// options. Of IPv6 the kernel looks at neither before the packets have arrived.
type whole iptables.Family

func (s whole) exprs(*ruleset) []expr.Any {
	out := isFamily(iptables.Family(s))
	if iptables.Family(s) == iptables.IPv6 {
		return out
	}
	masked := func(offset uint32, mask, want []byte) []expr.Any {
		n := uint32(len(mask))
		return []expr.Any{
			&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n},
			&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: n, Mask: mask, Xor: make([]byte, n)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: want},
		}
	}
	out = append(out, masked(0, []byte{0x0f}, []byte{5})...)
	return append(out, masked(6, []byte{0x3f, 0xff}, []byte{0, 0})...)
}

func (s whole) text(rule) string {
	if iptables.Family(s) == iptables.IPv6 {
		return "meta nfproto ipv6"
	}
	return "ip hdrlength 5 ip frag-off & 16383 == 0"
}

// toUs matches what was sent to the device's own link-layer address.
type toUs struct{}

func (toUs) exprs(*ruleset) []expr.Any {
	const packetHost = 0 // PACKET_HOST of linux/if_packet.h
	return metaIs(expr.MetaKeyPKTTYPE, []byte{packetHost})
}

func (toUs) text(rule) string { return "meta pkttype host" }

// routesBack matches packets whose source is reached through the device by which
// they came, and is no broadcast address.
type routesBack struct{}

func (routesBack) exprs(*ruleset) []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: unix.NFT_REG_1, ResultOIF: true, FlagSADDR: true, FlagIIF: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: unix.NFT_REG_1, Data: make([]byte, 4)},
		&expr.Fib{Register: unix.NFT_REG_1, ResultADDRTYPE: true, FlagSADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: nfnl.NativeUint32(unix.RTN_UNICAST)},
	}
}

func (routesBack) text(rule) string { return "fib saddr . iif oif != 0 fib saddr type unicast" }

// ofClass matches a family and a protocol.
type ofClass struct {
	family iptables.Family
	proto  iptables.Proto
}

func (s ofClass) exprs(*ruleset) []expr.Any {
	return append(isFamily(s.family), metaIs(expr.MetaKeyL4PROTO, []byte{byte(s.proto)})...)
}

func (s ofClass) text(rule) string {
	return fmt.Sprintf("meta nfproto %s meta l4proto %s", s.family, s.proto)
}

// tcpFlags matches TCP segments by those of their flags that are in the mask:
// exactly the wanted ones are set, or any.
type tcpFlags struct {
	mask, want byte
	any        bool
}

// Flags of the TCP header (RFC 9293 3.1).
const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpACK = 0x10
)

// The kinds of segments that begin and end connections, and all others.
var (
	isSYN    = tcpFlags{mask: tcpSYN | tcpACK, want: tcpSYN}
	isSYNACK = tcpFlags{mask: tcpSYN | tcpACK, want: tcpSYN | tcpACK}
	isReset  = tcpFlags{mask: tcpRST, any: true}
	isEnd    = tcpFlags{mask: tcpFIN | tcpRST, any: true}
	isMiddle = tcpFlags{mask: tcpFIN | tcpSYN | tcpRST}
)

func (s tcpFlags) exprs(*ruleset) []expr.Any {
	op := expr.CmpOpEq
	if s.any {
		op = expr.CmpOpNeq
	}
	return append(metaIs(expr.MetaKeyL4PROTO, []byte{byte(iptables.TCP)}),
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 1, Mask: []byte{s.mask}, Xor: []byte{0}},
		&expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: []byte{s.want}},
	)
}

func (s tcpFlags) text(rule) string {
	switch {
	case s.any:
		return "tcp flags " + flagNames(s.mask)
	case s.want == 0:
		return "tcp flags ! " + flagNames(s.mask)
	}
	return "tcp flags " + flagNames(s.want) + " / " + flagNames(s.mask)
}

// flagNames lists flags as nft does.
func flagNames(flags byte) string {
	var names []string
	for i, name := range []string{"fin", "syn", "rst", "psh", "ack"} {
		if flags&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// The remaining statements end a rule or act on the packet.
type (
	notrack   struct{}
	accept    struct{}
	drop      struct{}
	goToChain string
	count     iptables.CounterKey
)

func (notrack) exprs(*ruleset) []expr.Any { return []expr.Any{&expr.Notrack{}} }
func (notrack) text(rule) string          { return "notrack" }

func (accept) exprs(*ruleset) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
}
func (accept) text(rule) string { return "accept" }

func (drop) exprs(*ruleset) []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }
func (drop) text(rule) string          { return "drop" }

func (s goToChain) exprs(*ruleset) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: string(s)}}
}
func (s goToChain) text(rule) string { return "goto " + string(s) }

func (s count) exprs(*ruleset) []expr.Any {
	return []expr.Any{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: counterName(iptables.CounterKey(s))}}
}

func (s count) text(rule) string {
	return fmt.Sprintf("counter name %q", counterName(iptables.CounterKey(s)))
}

func isFamily(f iptables.Family) []expr.Any {
	nfproto := byte(unix.NFPROTO_IPV4)
	if f == iptables.IPv6 {
		nfproto = unix.NFPROTO_IPV6
	}
	return metaIs(expr.MetaKeyNFPROTO, []byte{nfproto})
}

func metaIs(key expr.MetaKey, value []byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: value},
	}
}
