package evaluator

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// Certainty tells whether a condition holds for a packet of which only some
// fields are known.
type Certainty uint8

// In this order min is "and", and max is "or".
const (
	Never Certainty = iota
	Maybe
	Always
)

func certain(b bool) Certainty {
	if b {
		return Always
	}
	return Never
}

// Probe is a packet of which family, protocol and one end are known: a query
// to an endpoint, or a response from it.
type Probe struct {
	Endpoint  iptables.Endpoint
	Direction iptables.Direction
	Way       *Way // nil: before conntrack, by any device
}

// Family is the IP version of the packet.
func (p Probe) Family() iptables.Family { return iptables.FamilyOf(p.Endpoint.Addr) }

// Passes reports whether chains of a table of the family see the packet.
func (p Probe) Passes(f nftables.TableFamily) bool {
	switch f {
	case nftables.TableFamilyIPv4:
		return p.Family() == iptables.IPv4
	case nftables.TableFamilyIPv6:
		return p.Family() == iptables.IPv6
	}
	return true
}

// MayMeet picks the rules that meet one of the packets, or may do so for all that
// is known without the sets.
func MayMeet(probes []Probe) func(nftables.TableFamily, nfnl.Rule) bool {
	unread := func(string) ([]nfnl.Element, error) { return nil, errors.New("not read") }
	return func(f nftables.TableFamily, r nfnl.Rule) bool {
		return slices.ContainsFunc(probes, func(p Probe) bool {
			return p.Passes(f) && Evaluate(r, p, unread).Matches != Never
		})
	}
}

// registers are the 16 32-bit registers of nf_tables, byte by byte. A byte of
// the other end's address or port is not known, but nobody's in particular: a
// rule for a single other host does not concern the endpoint.
type registers [64]registerByte

type registerByte struct {
	value byte
	known bool
	other bool
	// client is the place in the address of one client of several, from 1 on;
	// value are the bits of it that are there.
	client uint8
}

// at returns the offset of a register: 1 to 4 are 16 bytes each, those from
// NFT_REG32_00 on overlay them with 4 bytes each.
func (*registers) at(register uint32) int {
	if register >= unix.NFT_REG32_00 {
		return min(int(register-unix.NFT_REG32_00)*4, 63)
	}
	return min(max(int(register)-1, 0)*16, 63)
}

// store writes bytes; nil makes length bytes unknown.
func (r *registers) store(register uint32, value []byte, length int) {
	offset := r.at(register)
	for i := offset; i < len(r) && i < offset+max(length, len(value)); i++ {
		r[i].known, r[i].other, r[i].client = i-offset < len(value), false, 0
		if r[i].known {
			r[i].value = value[i-offset]
		}
	}
	// The kernel pads the last 32 bits with zeros.
	for i := offset + len(value); len(value) > 0 && i < len(r) && i%4 != 0; i++ {
		r[i].value, r[i].known, r[i].other, r[i].client = 0, true, false, 0
	}
}

// load reads bytes, or reports that some of them are unknown.
func (r *registers) load(register uint32, length int) ([]byte, bool) {
	offset := r.at(register)
	if length <= 0 || offset+length > len(r) {
		return nil, false
	}
	out := make([]byte, length)
	for i := range out {
		if !r[offset+i].known {
			return nil, false
		}
		out[i] = r[offset+i].value
	}
	return out, true
}

// hold marks bytes as the other end's.
func (r *registers) hold(register uint32, length int) {
	offset := r.at(register)
	for i := offset; i < len(r) && i < offset+length; i++ {
		r[i].other = true
	}
}

// holdClient marks bytes as those of a client's address from a place on.
func (r *registers) holdClient(register uint32, length, place int) {
	offset := r.at(register)
	for i := offset; i < len(r) && i < offset+length; i++ {
		r[i].client, r[i].value = uint8(place+i-offset+1), 0xff
	}
}

// isClient reports whether bytes are those of a client's address.
func (r *registers) isClient(register uint32, length int) bool {
	offset := r.at(register)
	if length <= 0 || offset+length > len(r) {
		return false
	}
	return !slices.ContainsFunc(r[offset:offset+length], func(b registerByte) bool { return b.client == 0 })
}

// equalsClient reports whether bytes that are a client's may be the wanted ones
// for one of the packet's clients.
func (r *registers) equalsClient(register uint32, want []byte, p Probe) bool {
	held := r[r.at(register):][:len(want)]
	return slices.ContainsFunc(p.Way.Clients, func(a netip.Addr) bool {
		address := a.AsSlice()
		whole := true
		for i, b := range held {
			if int(b.client) <= len(address) && address[b.client-1]&b.value != want[i] {
				return false
			}
			whole = whole && b.value == 0xff
		}
		// A whole address is never that of nobody in particular.
		return a.IsValid() || !whole || len(want) < p.Endpoint.Addr.BitLen()/8
	})
}

// other reports whether bytes hold the other end's address or port.
func (r *registers) other(register uint32, length int) bool {
	offset := r.at(register)
	for i := offset; i < len(r) && i < offset+length; i++ {
		if r[i].other {
			return true
		}
	}
	return false
}

// Outcome is what a rule does to a probe.
type Outcome struct {
	Matches Certainty
	Effects []string      // notrack and what else is done to the packet
	Verdict *nfnl.Verdict // nil: go on with the next rule
}

// ElementsOf reads a set that a rule looks into.
type ElementsOf func(set string) ([]nfnl.Element, error)

// Evaluate runs a rule on a probe, as nft_do_chain does. What it does not know
// makes the outcome uncertain, never wrong.
func Evaluate(r nfnl.Rule, p Probe, sets ElementsOf) Outcome {
	out := Outcome{Matches: Always}
	var regs registers
	for _, e := range r.Exprs {
		if out.Matches == Never {
			return out
		}
		out.step(e, p, &regs, sets)
	}
	return out
}

// Unconditional is what a rule does to the packets that it matches.
func Unconditional(r nfnl.Rule, sets ElementsOf) Outcome {
	var out Outcome
	var regs registers
	for _, e := range r.Exprs {
		out.step(e, Probe{}, &regs, sets)
	}
	out.Matches = Always
	return out
}

func (o *Outcome) require(c Certainty) { o.Matches = min(o.Matches, c) }

func (o *Outcome) step(e nfnl.Expression, p Probe, regs *registers, sets ElementsOf) {
	switch e.Name {
	case "payload":
		if e.Has(unix.NFTA_PAYLOAD_SREG) {
			o.Effects = append(o.Effects, "rewrites the packet")
			return
		}
		length := int(e.Number(unix.NFTA_PAYLOAD_LEN))
		base, offset, dreg := e.Number(unix.NFTA_PAYLOAD_BASE), e.Number(unix.NFTA_PAYLOAD_OFFSET), e.Number(unix.NFTA_PAYLOAD_DREG)
		regs.store(dreg, p.field(base, offset, length), length)
		if p.otherEnd(base, offset, length) {
			regs.hold(dreg, length)
		}
		if place, is := p.clientAt(base, offset, length); is {
			regs.holdClient(dreg, length, place)
		}
	case "meta":
		if e.Has(unix.NFTA_META_DREG) {
			regs.store(e.Number(unix.NFTA_META_DREG), p.meta(e.Number(unix.NFTA_META_KEY)), 4)
		}
	case "cmp":
		want := e.Value(unix.NFTA_CMP_DATA)
		op := e.Number(unix.NFTA_CMP_OP)
		got, ok := regs.load(e.Number(unix.NFTA_CMP_SREG), len(want))
		switch {
		case ok:
			o.require(certain(compares(bytes.Compare(got, want), op)))
		case op == unix.NFT_CMP_EQ && regs.other(e.Number(unix.NFTA_CMP_SREG), len(want)):
			o.require(Never)
		case op == unix.NFT_CMP_EQ && regs.isClient(e.Number(unix.NFTA_CMP_SREG), len(want)) &&
			!regs.equalsClient(e.Number(unix.NFTA_CMP_SREG), want, p):
			o.require(Never)
		default:
			o.require(Maybe)
		}
	case "range":
		from, to := e.Value(unix.NFTA_RANGE_FROM_DATA), e.Value(unix.NFTA_RANGE_TO_DATA)
		got, ok := regs.load(e.Number(unix.NFTA_RANGE_SREG), len(from))
		if !ok {
			o.require(Maybe)
			return
		}
		inside := bytes.Compare(got, from) >= 0 && bytes.Compare(got, to) <= 0
		o.require(certain(inside == (e.Number(unix.NFTA_RANGE_OP) == unix.NFT_RANGE_EQ)))
	case "bitwise":
		bitwise(e, regs)
	case "lookup":
		o.lookup(e, regs, sets)
	case "immediate":
		if e.Number(unix.NFTA_IMMEDIATE_DREG) == unix.NFT_REG_VERDICT {
			v := nfnl.ReadVerdict(nfnl.Attributes(e.Attrs[unix.NFTA_IMMEDIATE_DATA])[unix.NFTA_DATA_VERDICT])
			o.Verdict = &v
			return
		}
		regs.store(e.Number(unix.NFTA_IMMEDIATE_DREG), e.Value(unix.NFTA_IMMEDIATE_DATA), 0)
	case "notrack":
		o.Effects = append(o.Effects, "notrack")
	case "match":
		o.require(matches(e, p))
	case "target":
		o.target(e)
	case "reject":
		o.Verdict = &nfnl.Verdict{Code: nfnl.VerdictDrop}
	case "queue":
		o.Verdict = &nfnl.Verdict{Code: nfnl.VerdictQueue}
	case "tproxy", "dup", "fwd", "nat", "redir", "masq", "synproxy":
		o.Effects = append(o.Effects, e.Name)
	case "ct":
		if e.Has(unix.NFTA_CT_SREG) {
			o.Effects = append(o.Effects, ctEffect(e))
			return
		}
		if p.Way != nil {
			// nft_ct_get_eval: a packet without an entry has a state and
			// nothing else.
			if e.Number(unix.NFTA_CT_KEY) != unix.NFT_CT_STATE {
				o.require(Never)
				return
			}
			regs.store(e.Number(unix.NFTA_CT_DREG), nfnl.NativeUint32(stateUntracked), 0)
			return
		}
		regs.store(e.Number(unix.NFTA_CT_DREG), nil, 16)
	case "fib":
		regs.store(e.Number(unix.NFTA_FIB_DREG), p.fib(e), 16)
	case "counter", "objref", "log", "dynset":
		// They match everything and change nothing of the packet.
	default:
		// limit, quota, exthdr, socket and what is to come: they may
		// not match, and what they load is not known.
		o.require(Maybe)
		*regs = registers{}
	}
}

// field is a part of a header, nil if it is not known.
func (p Probe) field(base, offset uint32, length int) []byte {
	var header [64]byte
	var known [64]bool
	put := func(at int, value ...byte) {
		for i, b := range value {
			header[at+i], known[at+i] = b, true
		}
	}
	e := p.Endpoint
	switch base {
	case unix.NFT_PAYLOAD_NETWORK_HEADER:
		ends := 12
		if p.Family() == iptables.IPv6 {
			put(6, byte(e.Proto))
			ends = 8
		} else {
			put(9, byte(e.Proto))
		}
		source, destination := e.Addr, p.client()
		if p.Direction == iptables.Query {
			source, destination = destination, source
		}
		put(ends, source.AsSlice()...)
		put(ends+e.Addr.BitLen()/8, destination.AsSlice()...)
	case unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		at := 0
		if p.Direction == iptables.Query {
			at = 2
		}
		put(at, binary.BigEndian.AppendUint16(nil, e.Port)...)
	}
	end := int(offset) + length
	if length <= 0 || int(offset) > len(header) || end > len(header) || slices.Contains(known[offset:end], false) {
		return nil
	}
	return header[offset:end]
}

// otherEnd reports whether a part of a header is the whole address or port of
// the end that is not ours, and nobody's in particular.
func (p Probe) otherEnd(base, offset uint32, length int) bool {
	if base == unix.NFT_PAYLOAD_NETWORK_HEADER && p.Way != nil && (p.Way.AnyClient || p.Way.Client.IsValid()) {
		return false
	}
	toOther := p.Direction == iptables.Response
	switch {
	case base == unix.NFT_PAYLOAD_TRANSPORT_HEADER && length == 2:
		return toOther && offset == 2 || !toOther && offset == 0
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && p.Family() == iptables.IPv4 && length == 4:
		return toOther && offset == 16 || !toOther && offset == 12
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && p.Family() == iptables.IPv6 && length == 16:
		return toOther && offset == 24 || !toOther && offset == 8
	}
	return false
}

// clientAt reports whether a part of a header is one of the address of a client,
// of whom several are known, and where it begins in it.
func (p Probe) clientAt(base, offset uint32, length int) (place int, is bool) {
	if base != unix.NFT_PAYLOAD_NETWORK_HEADER || p.Way == nil || !p.Way.AnyClient || len(p.Way.Clients) == 0 {
		return 0, false
	}
	size, source := net.IPv4len, 12
	if p.Family() == iptables.IPv6 {
		size, source = net.IPv6len, 8
	}
	begins := source
	if p.Direction == iptables.Response {
		begins += size
	}
	place = int(offset) - begins
	return place, place >= 0 && length > 0 && place+length <= size
}

// meta is what the kernel knows of the packet beside its headers.
func (p Probe) meta(key uint32) []byte {
	v6 := p.Family() == iptables.IPv6
	switch key {
	case unix.NFT_META_NFPROTO:
		if v6 {
			return []byte{unix.NFPROTO_IPV6}
		}
		return []byte{unix.NFPROTO_IPV4}
	case unix.NFT_META_L4PROTO:
		return []byte{byte(p.Endpoint.Proto)}
	case unix.NFT_META_PROTOCOL:
		if v6 {
			return []byte{0x86, 0xdd}
		}
		return []byte{0x08, 0x00}
	}
	return p.device(key)
}

func compares(order int, op uint32) bool {
	switch op {
	case unix.NFT_CMP_EQ:
		return order == 0
	case unix.NFT_CMP_NEQ:
		return order != 0
	case unix.NFT_CMP_LT:
		return order < 0
	case unix.NFT_CMP_LTE:
		return order <= 0
	case unix.NFT_CMP_GT:
		return order > 0
	}
	return order >= 0 // NFT_CMP_GTE
}

// bitwise is (source & mask) ^ xor, which prefixes are compared with.
func bitwise(e nfnl.Expression, regs *registers) {
	const bitwiseOp = 6 // NFTA_BITWISE_OP, since Linux 5.6; 0 is the boolean one
	mask, xor := e.Value(unix.NFTA_BITWISE_MASK), e.Value(unix.NFTA_BITWISE_XOR)
	sreg, dreg := e.Number(unix.NFTA_BITWISE_SREG), e.Number(unix.NFTA_BITWISE_DREG)
	if sreg == dreg && len(xor) == len(mask) && e.Number(bitwiseOp) == 0 && regs.isClient(sreg, len(mask)) &&
		!slices.ContainsFunc(xor, func(b byte) bool { return b != 0 }) {
		for i, b := range mask {
			regs[regs.at(sreg)+i].value &= b
		}
		return
	}
	got, ok := regs.load(sreg, len(mask))
	if !ok || len(xor) != len(mask) || e.Number(bitwiseOp) != 0 {
		regs.store(dreg, nil, int(e.Number(unix.NFTA_BITWISE_LEN)))
		return
	}
	for i := range got {
		got[i] = got[i]&mask[i] ^ xor[i]
	}
	regs.store(dreg, got, 0)
}

func (o *Outcome) lookup(e nfnl.Expression, regs *registers, sets ElementsOf) {
	dreg := e.Has(unix.NFTA_LOOKUP_DREG)
	elements, err := sets(e.SetName())
	found, c := (*nfnl.Element)(nil), Maybe
	if err == nil {
		found, c = find(elements, e.Number(unix.NFTA_LOOKUP_SREG), regs)
	}
	if e.Number(unix.NFTA_LOOKUP_FLAGS)&unix.NFT_LOOKUP_F_INV != 0 {
		c = Always - c
	}
	o.require(c)
	switch {
	case !dreg:
	case found == nil:
		regs.store(e.Number(unix.NFTA_LOOKUP_DREG), nil, 16)
	case found.Verdict != nil:
		o.Verdict = found.Verdict
	default:
		regs.store(e.Number(unix.NFTA_LOOKUP_DREG), found.Value, 0)
	}
}

// find looks for the key that starts in a register.
func find(elements []nfnl.Element, register uint32, regs *registers) (*nfnl.Element, Certainty) {
	if len(elements) == 0 {
		return nil, Never
	}
	length := 0
	for _, e := range elements {
		length = max(length, len(e.Key))
	}
	intervals := slices.ContainsFunc(elements, func(e nfnl.Element) bool { return e.KeyEnd != nil || e.IntervalEnd })
	key, ok := regs.load(register, length)
	switch {
	case !ok && !intervals && regs.other(register, length):
		return nil, Never
	case !ok:
		return nil, Maybe
	}
	if slices.ContainsFunc(elements, func(e nfnl.Element) bool { return e.KeyEnd != nil }) {
		// A range in every part of a concatenation.
		best := Never
		for i, e := range elements {
			switch within(key, e.Key, e.KeyEnd) {
			case Always:
				return &elements[i], Always
			case Maybe:
				best = Maybe
			}
		}
		return nil, best
	}
	if slices.ContainsFunc(elements, func(e nfnl.Element) bool { return e.IntervalEnd }) {
		// Intervals are sorted starts and, where something is left out behind
		// them, ends.
		var last *nfnl.Element
		sorted := slices.SortedFunc(slices.Values(elements), func(a, b nfnl.Element) int {
			if order := bytes.Compare(a.Key, b.Key); order != 0 || a.IntervalEnd == b.IntervalEnd {
				return order
			} else if a.IntervalEnd {
				return -1 // one interval ends where the next one starts
			}
			return 1
		})
		for i := range sorted {
			if bytes.Compare(sorted[i].Key, key) <= 0 {
				last = &sorted[i]
			}
		}
		if last == nil || last.IntervalEnd {
			return nil, Never
		}
		return last, Always
	}
	for i, e := range elements {
		if bytes.Equal(e.Key, key) {
			return &elements[i], Always
		}
	}
	return nil, Never
}

// within compares 32 bits at a time. Where fields end within the key is not
// known here, so a longer field that is inside only as a whole stays uncertain.
func within(key, from, to []byte) Certainty {
	if len(from) != len(key) || len(to) != len(key) {
		return Maybe
	}
	inside := Always
	for at := 0; at < len(key); at += 4 {
		end := min(at+4, len(key))
		if bytes.Compare(key[at:end], from[at:end]) < 0 || bytes.Compare(key[at:end], to[at:end]) > 0 {
			inside = Never
		}
	}
	if inside == Never && bytes.Compare(key, from) >= 0 && bytes.Compare(key, to) <= 0 {
		return Maybe
	}
	return inside
}

// matches evaluates an extension of iptables (xt_tcpudp.h; ports in host byte
// order).
func matches(e nfnl.Expression, p Probe) Certainty {
	info := e.Attrs[unix.NFTA_MATCH_INFO]
	switch name := e.Extension(); name {
	case "comment":
		return Always
	case "conntrack", "state":
		return p.matchesState(info)
	case "addrtype":
		return p.matchesAddressType(e.Number(unix.NFTA_MATCH_REV), info)
	case "multiport":
		return p.matchesPorts(e.Number(unix.NFTA_MATCH_REV), info)
	case "udp", "tcp":
		invert := 8
		if name == "tcp" {
			invert = 11
		}
		if len(info) <= invert {
			return Maybe
		}
		if (name == "tcp") != (p.Endpoint.Proto == iptables.TCP) {
			return Never
		}
		at, flag := 0, byte(1)
		if p.Direction == iptables.Query {
			at, flag = 4, 2
		}
		port := func(at int) uint16 { return binary.NativeEndian.Uint16(info[at:]) }
		inside := p.Endpoint.Port >= port(at) && p.Endpoint.Port <= port(at+2)
		if inside == (info[invert]&flag != 0) {
			return Never
		}
		// The other end's port is anything.
		other := 4 - at
		if port(other) != 0 || port(other+2) != 0xffff || info[invert]&^flag != 0 || name == "tcp" && info[9] != 0 {
			return Maybe
		}
		return Always
	}
	return Maybe
}

// target is what an extension of iptables does to the packet.
func (o *Outcome) target(e nfnl.Expression) {
	info := e.Attrs[unix.NFTA_TARGET_INFO]
	switch name := e.Extension(); name {
	case "NOTRACK":
		o.Effects = append(o.Effects, "notrack")
	case "CT":
		notrack, zone := ctTarget(info)
		switch {
		case notrack:
			o.Effects = append(o.Effects, "notrack")
		case zone != "":
			o.Effects = append(o.Effects, EffectZone)
		default:
			o.Effects = append(o.Effects, "ct set")
		}
	case "LOG", "NFLOG", "TRACE":
	case "REJECT":
		o.Verdict = &nfnl.Verdict{Code: nfnl.VerdictDrop}
	case "NFQUEUE":
		o.Verdict = &nfnl.Verdict{Code: nfnl.VerdictQueue}
	case "":
	default:
		o.Effects = append(o.Effects, name)
	}
}

// EffectZone is the effect of a rule that puts packets into a zone of connection
// tracking. That tracks them: nft's undoes NOTRACK, before and behind it, and that of
// iptables does if it comes first.
const EffectZone = "ct zone set"

// ctEffect names what nft's `ct … set` does.
func ctEffect(e nfnl.Expression) string {
	if e.Number(unix.NFTA_CT_KEY) == unix.NFT_CT_ZONE {
		return EffectZone
	}
	return "ct set"
}

// ctTarget reads what the target CT of iptables does: notrack, or the zone that it
// sets, empty if none (struct xt_ct_target_info in linux/netfilter/xt_CT.h).
func ctTarget(info []byte) (notrack bool, zone string) {
	const (
		flagNotrack  = 1 << 0
		flagOriginal = 1 << 2
		flagReply    = 1 << 3
		flagMark     = 1 << 4
	)
	if len(info) < 4 {
		return false, ""
	}
	flags, id := binary.NativeEndian.Uint16(info), binary.NativeEndian.Uint16(info[2:])
	switch {
	case flags&flagNotrack != 0:
		return true, ""
	case flags&flagMark != 0:
		zone = "--zone mark"
	case id == 0:
		return false, ""
	default:
		zone = "--zone " + strconv.Itoa(int(id))
	}
	switch flags & (flagOriginal | flagReply) {
	case flagOriginal:
		zone = strings.Replace(zone, "--zone", "--zone-orig", 1)
	case flagReply:
		zone = strings.Replace(zone, "--zone", "--zone-reply", 1)
	}
	return false, zone
}
