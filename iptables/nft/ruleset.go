package nft

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// The ruleset, for each family (sets and counters carry 4 or 6, ipv4 or ipv6):
//
//	listen  endpoints of the plan, static: responses are untracked by it
//	live    endpoints whose queries are untracked: empty unless attached
//	check   the transport addresses of our own checks
//
//	prerouting, output at raw (-300):
//	  a check of ours over lo, either direction   notrack, not counted
//	  to an endpoint in @live                     notrack, counted in prerouting
//	  from an endpoint in @listen                 notrack, counted in output
//
// Queries all pass prerouting (the node's own arrive there over lo) and
// responses all leave through output, so each packet is counted once although
// what the node sends to itself passes both hooks. A packet that is no DNS
// costs two set lookups per hook.

// setTypes are the keys of the sets: address . protocol . port.
var setTypes = map[iptables.Family]nftables.SetDatatype{
	iptables.IPv4: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService),
	iptables.IPv6: nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetProto, nftables.TypeInetService),
}

var families = []iptables.Family{iptables.IPv4, iptables.IPv6}

// familySets are the three sets of one family.
type familySets struct {
	listen, live, check *nftables.Set
}

// ruleset holds the objects of one table by which later transactions name them.
type ruleset struct {
	table *nftables.Table
	sets  map[iptables.Family]familySets
}

func newRuleset(name string) *ruleset {
	rs := &ruleset{
		table: &nftables.Table{Name: name, Family: nftables.TableFamilyINet},
		sets:  map[iptables.Family]familySets{},
	}
	for _, f := range families {
		set := func(name string) *nftables.Set {
			return &nftables.Set{Table: rs.table, Name: fmt.Sprintf("%s%d", name, f), KeyType: setTypes[f]}
		}
		rs.sets[f] = familySets{listen: set("listen"), live: set("live"), check: set("check")}
	}
	return rs
}

// build queues everything but the table itself and the sets' elements.
func (rs *ruleset) build(c *nftables.Conn) error {
	for _, f := range families {
		s := rs.sets[f]
		for _, set := range []*nftables.Set{s.listen, s.live, s.check} {
			if err := c.AddSet(set, nil); err != nil {
				return err
			}
		}
	}
	for _, k := range iptables.CounterKeys() {
		c.AddObj(&nftables.NamedObj{Table: rs.table, Name: counterName(k), Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	}
	queries := rs.countChain(c, "queries", iptables.Query)
	responses := rs.countChain(c, "responses", iptables.Response)

	accept := nftables.ChainPolicyAccept
	for _, hook := range (iptables.Plan{}).Hooks() {
		hooknum := nftables.ChainHookPrerouting
		if hook == iptables.Output {
			hooknum = nftables.ChainHookOutput
		}
		chain := c.AddChain(&nftables.Chain{
			Table: rs.table, Name: hook.String(), Type: nftables.ChainTypeFilter,
			Hooknum: hooknum, Priority: nftables.ChainPriorityRaw, Policy: &accept,
		})
		for _, f := range families {
			s := rs.sets[f]
			rs.rule(c, chain, onLo(hook), inSet(f, source, s.check), inSet(f, destination, s.listen), notrackAccept())
			rs.rule(c, chain, onLo(hook), inSet(f, source, s.listen), inSet(f, destination, s.check), notrackAccept())
			queryVerdict, responseVerdict := notrackAccept(), notrackAccept()
			if hook == iptables.Prerouting {
				queryVerdict = gotoChain(queries)
			} else {
				responseVerdict = gotoChain(responses)
			}
			rs.rule(c, chain, inSet(f, destination, s.live), queryVerdict)
			rs.rule(c, chain, inSet(f, source, s.listen), responseVerdict)
		}
	}
	return nil
}

// countChain adds the chain that untracks what is sent to it and counts it by
// family and protocol.
func (rs *ruleset) countChain(c *nftables.Conn, name string, d iptables.Direction) *nftables.Chain {
	chain := c.AddChain(&nftables.Chain{Table: rs.table, Name: name})
	rs.rule(c, chain, []expr.Any{&expr.Notrack{}})
	for _, k := range iptables.CounterKeys() {
		if k.Direction != d {
			continue
		}
		rs.rule(c, chain, isFamily(k.Family), isProto(k.Proto), []expr.Any{
			&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: counterName(k)},
		})
	}
	return chain
}

func (rs *ruleset) rule(c *nftables.Conn, chain *nftables.Chain, parts ...[]expr.Any) {
	var exprs []expr.Any
	for _, p := range parts {
		exprs = append(exprs, p...)
	}
	c.AddRule(&nftables.Rule{Table: rs.table, Chain: chain, Exprs: exprs})
}

// counterName gives for example "query-ipv4-udp".
func counterName(k iptables.CounterKey) string {
	return fmt.Sprintf("%s-%s-%s", k.Direction, k.Family, k.Proto)
}

// side is the end of a packet that is compared with a set.
type side uint8

const (
	source side = iota
	destination
)

// inSet matches a packet of family f whose address, protocol and port on the
// given side are an element of set. The key is laid out in 32-bit registers,
// as sets with concatenated keys want it (NFT_REG32_00 is 8; register 1 is the
// first 16 bytes of them).
func inSet(f iptables.Family, s side, set *nftables.Set) []expr.Any {
	const reg32 = unix.NFT_REG32_00
	addrOffset, addrLen, proto := uint32(12), uint32(4), uint32(reg32+1)
	if f == iptables.IPv6 {
		addrOffset, addrLen, proto = 8, 16, reg32+4
	}
	portOffset := uint32(0)
	if s == destination {
		addrOffset += addrLen
		portOffset = 2
	}
	return append(isFamily(f),
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseNetworkHeader, Offset: addrOffset, Len: addrLen},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: proto},
		&expr.Payload{DestRegister: proto + 1, Base: expr.PayloadBaseTransportHeader, Offset: portOffset, Len: 2},
		&expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: set.Name, SetID: set.ID},
	)
}

func isFamily(f iptables.Family) []expr.Any {
	nfproto := byte(unix.NFPROTO_IPV4)
	if f == iptables.IPv6 {
		nfproto = unix.NFPROTO_IPV6
	}
	return metaIs(expr.MetaKeyNFPROTO, []byte{nfproto})
}

func isProto(p iptables.Proto) []expr.Any {
	return metaIs(expr.MetaKeyL4PROTO, []byte{byte(p)})
}

// onLo matches what comes from or goes to the loopback device, whose index is
// 1 in every network namespace. Nothing that a pod sends arrives on it.
func onLo(h iptables.Hook) []expr.Any {
	key := expr.MetaKeyIIF
	if h == iptables.Output {
		key = expr.MetaKeyOIF
	}
	return metaIs(key, nativeUint32(1))
}

func metaIs(key expr.MetaKey, value []byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: value},
	}
}

func notrackAccept() []expr.Any {
	return []expr.Any{&expr.Notrack{}, &expr.Verdict{Kind: expr.VerdictAccept}}
}

func gotoChain(c *nftables.Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: c.Name}}
}

// elements returns the keys of the endpoints of one family.
func elements(f iptables.Family, endpoints []iptables.Endpoint) []nftables.SetElement {
	var out []nftables.SetElement
	for _, e := range endpoints {
		if iptables.FamilyOf(e.Addr) == f {
			out = append(out, nftables.SetElement{Key: elementKey(e)})
		}
	}
	return out
}

// elementKey concatenates address, protocol and port, each padded to 32 bits.
func elementKey(e iptables.Endpoint) []byte {
	key := e.Addr.AsSlice()
	key = append(key, byte(e.Proto), 0, 0, 0)
	return append(key, byte(e.Port>>8), byte(e.Port), 0, 0)
}
