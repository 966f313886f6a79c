package kubeproxy

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	servicePort = 53

	// masqueradeMark is the bit of the packet mark by which kube-proxy's nat
	// chains tell its postrouting chain to masquerade.
	masqueradeMark = 0x4000

	// Registers of nf_tables (include/uapi/linux/netfilter/nf_tables.h):
	// reg1 and reg2 hold 16 bytes each, word the first of the 4-byte registers
	// that lie over reg1 and that concatenations fill one after the other.
	reg1 = unix.NFT_REG_1
	reg2 = unix.NFT_REG_2
	word = unix.NFT_REG32_00
)

// proxyFamily is what differs between kube-proxy's IPv4 and IPv6 rules.
type proxyFamily struct {
	table       nftables.TableFamily
	ipv6        bool
	addressType nftables.SetDatatype
	addressLen  uint32 // bytes of an address
	source      uint32 // offset of the source address in the network header
	destination uint32
	podCIDR     netip.Prefix
	serviceCIDR netip.Prefix
}

var (
	proxyIPv4 = proxyFamily{
		table: nftables.TableFamilyIPv4, addressType: nftables.TypeIPAddr, addressLen: 4,
		source: 12, destination: 16, podCIDR: podCIDR4, serviceCIDR: serviceCIDR4,
	}
	proxyIPv6 = proxyFamily{
		table: nftables.TableFamilyIPv6, ipv6: true, addressType: nftables.TypeIP6Addr, addressLen: 16,
		source: 8, destination: 24, podCIDR: podCIDR6, serviceCIDR: serviceCIDR6,
	}
)

// proxyRuleset queues the table of one family on conn.
type proxyRuleset struct {
	conn     *nftables.Conn
	family   proxyFamily
	services []Service

	table  *nftables.Table
	setIDs uint32
	err    error
}

// queue queues the table. A chain must exist before something jumps to it, so the
// regular chains and the maps come before the base chains.
func (r *proxyRuleset) queue() error {
	table := &nftables.Table{Name: tableName, Family: r.family.table}
	// Adding before deleting makes the deletion succeed where there is no
	// table yet; all three are one transaction.
	r.conn.AddTable(table)
	r.conn.DelTable(table)
	r.table = r.conn.AddTable(table)

	serviceKey := nftables.MustConcatSetType(r.family.addressType, nftables.TypeInetProto, nftables.TypeInetService)
	hairpinKey := nftables.MustConcatSetType(r.family.addressType, r.family.addressType,
		nftables.TypeInetProto, nftables.TypeInetService)

	reject := r.chain("reject-chain")
	r.rule(reject, &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: r.portUnreachable()})

	var clusterIPs, hairpins, noEndpoints, served []nftables.SetElement
	for _, service := range r.services {
		clusterIP := Address(service.ClusterIPs, r.family.ipv6)
		if !clusterIP.IsValid() {
			continue
		}
		clusterIPs = append(clusterIPs, nftables.SetElement{Key: clusterIP.AsSlice()})
		endpoint := Address(service.Endpoints, r.family.ipv6)
		for _, protocol := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			key := slices.Concat(clusterIP.AsSlice(), protocolAndPort(protocol))
			if !endpoint.IsValid() {
				noEndpoints = append(noEndpoints, goTo(key, reject))
				continue
			}
			served = append(served, goTo(key, r.serviceChain(service.Name, protocol, endpoint)))
			hairpins = append(hairpins, nftables.SetElement{
				Key: slices.Concat(endpoint.AsSlice(), endpoint.AsSlice(), protocolAndPort(protocol)),
			})
		}
	}
	clusterIPSet := r.set("cluster-ips", r.family.addressType, false, clusterIPs)
	hairpinSet := r.set("hairpin-connections", hairpinKey, false, hairpins)
	noEndpointMap := r.set("no-endpoint-services", serviceKey, true, noEndpoints)
	firewallMap := r.set("firewall-ips", serviceKey, true, nil)
	serviceMap := r.set("service-ips", serviceKey, true, served)

	services := r.chain("services")
	r.rule(services, r.masqueradeFromOutside(clusterIPSet)...)
	r.rule(services, r.dispatch(serviceMap)...)
	endpointsCheck := r.chain("service-endpoints-check")
	r.rule(endpointsCheck, r.dispatch(noEndpointMap)...)
	firewallCheck := r.chain("firewall-check")
	r.rule(firewallCheck, r.dispatch(firewallMap)...)
	clusterIPsCheck := r.chain("cluster-ips-check")
	r.rule(clusterIPsCheck, append(r.destinationIn(clusterIPSet),
		&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: r.portUnreachable()})...)
	r.rule(clusterIPsCheck, append(r.addressIn(r.family.destination, r.family.serviceCIDR, expr.CmpOpEq),
		&expr.Verdict{Kind: expr.VerdictDrop})...)
	masquerading := r.chain("masquerading")
	r.rule(masquerading, masqueradeMarked()...)
	r.rule(masquerading, r.masqueradeHairpins(hairpinSet)...)

	r.baseChains(services, endpointsCheck, firewallCheck, clusterIPsCheck, masquerading)
	return r.err
}

// baseChains hangs the chains into netfilter's hooks.
func (r *proxyRuleset) baseChains(services, endpointsCheck, firewallCheck, clusterIPsCheck, masquerading *nftables.Chain) {
	for _, base := range []struct {
		name     string
		kind     nftables.ChainType
		hook     *nftables.ChainHook
		priority nftables.ChainPriority
		jumps    []*nftables.Chain
	}{
		{"filter-prerouting-pre-dnat", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -110, []*nftables.Chain{firewallCheck}},
		{"filter-output-pre-dnat", nftables.ChainTypeFilter, nftables.ChainHookOutput, -110, []*nftables.Chain{firewallCheck}},
		{"filter-input", nftables.ChainTypeFilter, nftables.ChainHookInput, 0, []*nftables.Chain{endpointsCheck}},
		{"filter-forward", nftables.ChainTypeFilter, nftables.ChainHookForward, 0, []*nftables.Chain{endpointsCheck, clusterIPsCheck}},
		{"filter-output", nftables.ChainTypeFilter, nftables.ChainHookOutput, 0, []*nftables.Chain{endpointsCheck, clusterIPsCheck}},
		{"nat-prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, -100, []*nftables.Chain{services}},
		{"nat-output", nftables.ChainTypeNAT, nftables.ChainHookOutput, -100, []*nftables.Chain{services}},
		{"nat-postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 100, []*nftables.Chain{masquerading}},
	} {
		chain := r.conn.AddChain(&nftables.Chain{
			Name: base.name, Table: r.table, Type: base.kind, Hooknum: base.hook,
			Priority: nftables.ChainPriorityRef(base.priority),
		})
		for _, target := range base.jumps {
			jump := []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: target.Name}}
			if base.kind == nftables.ChainTypeFilter {
				jump = append(stateNew(), jump...)
			}
			r.rule(chain, jump...)
		}
	}
}

// serviceChain is the chain of one Service port: DNAT to its endpoint.
func (r *proxyRuleset) serviceChain(service string, protocol byte, endpoint netip.Addr) *nftables.Chain {
	name, port := "udp", "dns"
	if protocol == unix.IPPROTO_TCP {
		name, port = "tcp", "dns-tcp"
	}
	path := service + "/" + name + "/" + port
	sum := sha256.Sum256([]byte(path))
	chain := r.chain("service-" + base32.StdEncoding.EncodeToString(sum[:])[:8] + "-" + path)
	r.rule(chain,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{protocol}},
		&expr.Immediate{Register: reg1, Data: endpoint.AsSlice()},
		&expr.Immediate{Register: reg2, Data: binaryutil.BigEndian.PutUint16(servicePort)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(r.family.table), RegAddrMin: reg1, RegProtoMin: reg2},
	)
	return chain
}

// dispatch is `ip daddr . meta l4proto . th dport vmap @m`.
func (r *proxyRuleset) dispatch(m *nftables.Set) []expr.Any {
	words := r.family.addressLen / 4
	return []expr.Any{
		r.addressAt(r.family.destination, word),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: word + words},
		destinationPort(word + words + 1),
		&expr.Lookup{SourceRegister: word, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
	}
}

// masqueradeFromOutside marks what asks a ClusterIP from outside the pods.
func (r *proxyRuleset) masqueradeFromOutside(clusterIPs *nftables.Set) []expr.Any {
	return slices.Concat(
		r.destinationIn(clusterIPs),
		r.addressIn(r.family.source, r.family.podCIDR, expr.CmpOpNeq),
		markChange(^uint32(masqueradeMark), masqueradeMark),
	)
}

// masqueradeMarked is `meta mark & bit != 0 meta mark set meta mark ^ bit
// masquerade fully-random`.
func masqueradeMarked() []expr.Any {
	return slices.Concat(
		[]expr.Any{
			&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1},
			&expr.Bitwise{
				SourceRegister: reg1, DestRegister: reg1, Len: 4,
				Mask: binaryutil.NativeEndian.PutUint32(masqueradeMark), Xor: make([]byte, 4),
			},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
		},
		markChange(^uint32(0), masqueradeMark),
		[]expr.Any{&expr.Masq{FullyRandom: true}},
	)
}

// masqueradeHairpins is `ct status dnat ip saddr . ip daddr . meta l4proto .
// th dport @hairpins masquerade fully-random`: a pod that reaches itself.
func (r *proxyRuleset) masqueradeHairpins(hairpins *nftables.Set) []expr.Any {
	const statusDNAT = 1 << 5 // IPS_DST_NAT, nf_conntrack_common.h
	words := r.family.addressLen / 4
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg1},
		&expr.Bitwise{
			SourceRegister: reg1, DestRegister: reg1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(statusDNAT), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
		r.addressAt(r.family.source, word),
		r.addressAt(r.family.destination, word+words),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: word + 2*words},
		destinationPort(word + 2*words + 1),
		&expr.Lookup{SourceRegister: word, SetName: hairpins.Name, SetID: hairpins.ID},
		&expr.Masq{FullyRandom: true},
	}
}

func (r *proxyRuleset) destinationIn(set *nftables.Set) []expr.Any {
	return []expr.Any{
		r.addressAt(r.family.destination, reg1),
		&expr.Lookup{SourceRegister: reg1, SetName: set.Name, SetID: set.ID},
	}
}

func (r *proxyRuleset) addressIn(offset uint32, prefix netip.Prefix, op expr.CmpOp) []expr.Any {
	mask := make([]byte, r.family.addressLen)
	for bit := range prefix.Bits() {
		mask[bit/8] |= 0x80 >> (bit % 8)
	}
	return []expr.Any{
		r.addressAt(offset, reg1),
		&expr.Bitwise{
			SourceRegister: reg1, DestRegister: reg1, Len: r.family.addressLen,
			Mask: mask, Xor: make([]byte, r.family.addressLen),
		},
		&expr.Cmp{Op: op, Register: reg1, Data: prefix.Masked().Addr().AsSlice()},
	}
}

func (r *proxyRuleset) addressAt(offset, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: r.family.addressLen}
}

func (r *proxyRuleset) portUnreachable() uint8 {
	if r.family.ipv6 {
		return 4 // ICMPV6_PORT_UNREACH, RFC 4443 section 3.1
	}
	return 3 // ICMP_PORT_UNREACH, RFC 792
}

func (r *proxyRuleset) chain(name string) *nftables.Chain {
	return r.conn.AddChain(&nftables.Chain{Name: name, Table: r.table})
}

func (r *proxyRuleset) rule(chain *nftables.Chain, exprs ...expr.Any) {
	r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: chain, Exprs: exprs})
}

// set adds a set, or a verdict map. Its ID is unique within the table, which
// is all a transaction needs: the package's own numbering is not safe for
// concurrent use.
func (r *proxyRuleset) set(name string, key nftables.SetDatatype, verdicts bool, elements []nftables.SetElement) *nftables.Set {
	r.setIDs++
	set := &nftables.Set{
		Table: r.table, Name: name, ID: r.setIDs, KeyType: key, IsMap: verdicts,
		Concatenation: key.GetNFTMagic() > nftables.SetConcatTypeMask,
	}
	if verdicts {
		set.DataType = nftables.TypeVerdict
	}
	if err := r.conn.AddSet(set, elements); err != nil && r.err == nil {
		r.err = fmt.Errorf("set %s: %w", name, err)
	}
	return set
}

func goTo(key []byte, chain *nftables.Chain) nftables.SetElement {
	return nftables.SetElement{Key: key, VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain.Name}}
}

// protocolAndPort is the end of a concatenated key; each part takes a
// register of 4 bytes.
func protocolAndPort(protocol byte) []byte {
	return []byte{protocol, 0, 0, 0, servicePort >> 8, servicePort & 0xff, 0, 0}
}

func destinationPort(register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

func stateNew() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg1},
		&expr.Bitwise{
			SourceRegister: reg1, DestRegister: reg1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
	}
}

// markChange sets the packet mark to (mark & mask) ^ xor.
func markChange(mask, xor uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1},
		&expr.Bitwise{
			SourceRegister: reg1, DestRegister: reg1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: binaryutil.NativeEndian.PutUint32(xor),
		},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg1},
	}
}
