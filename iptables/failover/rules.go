package failover

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// How a query to a listen address that no Service owns reaches the cluster's DNS, and
// how its response reaches the client:
//
//	query     raw (-300)   a NOTRACK rule may untrack it; then it is accepted at -290
//	          -290         dropped if it comes from outside, else
//	                       destination = Service, zone = 53
//	          conntrack    an entry for the Service, in that zone
//	          -100         kube-proxy's DNAT to an endpoint, as for any client
//	          100, 101     kube-proxy's masquerade, else ours: a packet of the
//	                       node itself has the listen address as its source,
//	                       to which no endpoint on another node could answer
//	response  conntrack    found in the default zone: source = Service again
//	          300          source = listen address, if its query was in zone 53
//
// A DNAT to the Service would not do: a connection gets only one DNAT, and kube-proxy's
// would be skipped. Every packet of a flow is rewritten on its own, so kube-proxy may
// start, stop and change its mode at any time.
const (
	failoverRewritePriority  = -290 // after raw (-300), before conntrack (-200)
	failoverMasqPriority     = 101  // after kube-proxy's, at srcnat (100)
	failoverResponsePriority = 300  // after NAT is reversed, at 100
)

// failoverChain is one chain of the table.
type failoverChain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook // nil: no base chain
	hookName string
	priority nftables.ChainPriority
	prints   string // the priority as nft prints it
	rules    []failoverRule
}

// failoverRule is one rule: its expressions, and its text.
type failoverRule struct {
	exprs []failoverExpr
	text  string
}

// failoverChains returns the content of the table, without the counters. Its arguments
// are normalized.
func failoverChains(pairs []Pair, outside Outside) (chains []failoverChain) {
	var queries []failoverRule
	var responses, strays, masquerades []failoverRule
	for i, p := range pairs {
		zone := failoverZone(pairs, i)
		for _, port := range p.Ports {
			for _, proto := range []iptables.Proto{iptables.UDP, iptables.TCP} {
				queries = append(queries, rewriteQuery(p, zone, proto, port))
				responses = append(responses, rewriteResponse(p, zone, proto, port))
			}
		}
		strays = append(strays, dropInvalid(p))
		masquerades = append(masquerades, masqueradeListen(p, zone))
	}
	untracked := []failoverRule{untrackedAccept()}
	if len(outside.Uplinks) > 0 {
		chains = append(chains, failoverChain{name: outsideChain, rules: outside.rules(pairs)})
	}
	return append(chains, []failoverChain{
		{"prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, "prerouting", failoverRewritePriority, "raw + 10", slices.Concat(untracked, outside.lead(), queries)},
		// A route chain looks the route up again for the new destination.
		{"output", nftables.ChainTypeRoute, nftables.ChainHookOutput, "output", failoverRewritePriority, "raw + 10", slices.Concat(untracked, queries)},
		// A response to the node itself passes input, all others postrouting.
		{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, "input", failoverResponsePriority, "300", responses},
		{"postrouting", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, "postrouting", failoverResponsePriority, "300", slices.Concat(responses, strays)},
		{"masquerading", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, "postrouting", failoverMasqPriority, "srcnat + 1", masquerades},
	}...)
}

// untrackedAccept ends the chain for untracked packets.
func untrackedAccept() failoverRule {
	var r failoverRule
	r.add("ct state untracked", stateIs(expr.CtStateBitUNTRACKED)...)
	r.add("accept", library(&expr.Verdict{Kind: expr.VerdictAccept}))
	return r
}

func rewriteQuery(p Pair, zone uint16, proto iptables.Proto, port uint16) failoverRule {
	ip := ipHeaderOf(p.Listen)
	key := iptables.CounterKey{Direction: iptables.Query, Family: iptables.FamilyOf(p.Listen), Proto: proto}
	r := queryTo(p.Listen, proto, port)
	r.add(sprintf("counter name %q", failoverCounter(key)), counter(failoverCounter(key)))
	r.add(sprintf("ct original zone set %d", zone), immediate(hostOrder(zone)), setOriginalZone())
	r.add(sprintf("%s daddr set %s", ip.name, p.Service), immediate(p.Service.AsSlice()), ip.write(ip.daddr))
	return r
}

// The positions of the values among the expressions of a query rule.
const (
	queryRuleListen  = 3
	queryRulePort    = 7
	queryRuleService = 11
	queryRuleExprs   = 13
)

// rewriteResponse has one flaw, which is the kernel's. nft_payload_l4csum_update
// corrects the sum over the packet (skb->csum) by the new address also for IPv6, where
// the address and the checksum that covers it cancel out. This affects only UDP over
// IPv6 to the node itself, and only if conntrack has just computed that sum, because
// the device checks no checksums. Such a response is dropped (Udp6InCsumErrors), unless
// net.netfilter.nf_conntrack_checksum is 0. Packets from veths, and from devices that
// check checksums, are not affected.
func rewriteResponse(p Pair, zone uint16, proto iptables.Proto, port uint16) failoverRule {
	const directionReply = 1 // IP_CT_DIR_REPLY of nf_conntrack_tuple_common.h
	ip := ipHeaderOf(p.Listen)
	key := iptables.CounterKey{Direction: iptables.Response, Family: iptables.FamilyOf(p.Listen), Proto: proto}
	var r failoverRule
	r.add("ct direction reply", library(&expr.Ct{Key: expr.CtKeyDIRECTION, Register: unix.NFT_REG_1}), equals([]byte{directionReply}))
	r.add(sprintf("ct original zone %d", zone), loadOriginalZone(), equals(hostOrder(zone)))
	r.add("", ip.isFamily()...)
	r.add(sprintf("%s saddr %s", ip.name, p.Service), ip.load(ip.saddr), equals(p.Service.AsSlice()))
	r.add("", protoIs(proto)...)
	r.add(sprintf("%s sport %d", proto, port), loadPort(0), equals(binary.BigEndian.AppendUint16(nil, port)))
	r.add(sprintf("counter name %q", failoverCounter(key)), counter(failoverCounter(key)))
	r.add(sprintf("%s saddr set %s", ip.name, p.Listen), immediate(p.Listen.AsSlice()), ip.write(ip.saddr))
	return r
}

// dropInvalid drops packets of the node itself that conntrack finds invalid, such as a
// reset of a connection that we held when we died. They are rewritten, but no NAT
// gives them a source or a destination that exists.
func dropInvalid(p Pair) failoverRule {
	ip := ipHeaderOf(p.Listen)
	var r failoverRule
	r.add("ct state invalid", stateIs(expr.CtStateBitINVALID)...)
	r.add("", ip.isFamily()...)
	r.add(sprintf("%s saddr %s", ip.name, p.Listen), ip.load(ip.saddr), equals(p.Listen.AsSlice()))
	r.add(sprintf("%s daddr %s", ip.name, p.Service), ip.load(ip.daddr), equals(p.Service.AsSlice()))
	r.add("drop", library(&expr.Verdict{Kind: expr.VerdictDrop}))
	return r
}

func masqueradeListen(p Pair, zone uint16) failoverRule {
	ip := ipHeaderOf(p.Listen)
	var r failoverRule
	r.add(sprintf("ct original zone %d", zone), loadOriginalZone(), equals(hostOrder(zone)))
	r.add("", ip.isFamily()...)
	r.add(sprintf("%s saddr %s", ip.name, p.Listen), ip.load(ip.saddr), equals(p.Listen.AsSlice()))
	// Random, as kube-proxy's: two flows that choose the same free port at once
	// would lose a packet.
	r.add("masquerade fully-random", library(&expr.Masq{FullyRandom: true}))
	return r
}

// add appends expressions and their text. nft does not print expressions that follow
// from others, such as the family, which follows from the address.
func (r *failoverRule) add(text string, exprs ...failoverExpr) {
	r.exprs = append(r.exprs, exprs...)
	if text != "" && r.text != "" {
		text = " " + text
	}
	r.text += text
}

// ipHeader holds the differences between IPv4 and IPv6 rules.
type ipHeader struct {
	name         string
	nfproto      byte
	saddr, daddr uint32 // offsets in the network header
	length       uint32 // bytes of an address
	checksum     uint32 // offset of the header's own checksum, 0 for none
}

func ipHeaderOf(a netip.Addr) ipHeader {
	if a.Is4() {
		return ipHeader{name: "ip", nfproto: unix.NFPROTO_IPV4, saddr: 12, daddr: 16, length: 4, checksum: 10}
	}
	return ipHeader{name: "ip6", nfproto: unix.NFPROTO_IPV6, saddr: 8, daddr: 24, length: 16}
}
