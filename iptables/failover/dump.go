package failover

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// failoverDump is the table as the kernel dumps it. The zero value means no table.
type failoverDump struct {
	present  bool
	comment  string
	flags    uint32
	chains   map[string]chainShape
	rules    map[string][][]byte // NFTA_RULE_EXPRESSIONS by chain
	counters iptables.Counters
	others   int // sets, and objects that are not our counters
}

// chainShape holds the properties of a chain besides its rules.
type chainShape struct {
	kind     string
	hook     uint32
	priority int32
	policy   uint32
}

func dumpFailover(conn *netlink.Conn) (failoverDump, error) {
	d := failoverDump{chains: map[string]chainShape{}, rules: map[string][][]byte{}, counters: iptables.Counters{}}
	err := d.read(conn)
	if errors.Is(err, unix.ENOENT) {
		return failoverDump{}, nil // also if it is deleted while it is read
	}
	if err != nil {
		return failoverDump{}, explainFailover("read table inet "+owner.FailoverTable, err)
	}
	return d, nil
}

func (d *failoverDump) read(conn *netlink.Conn) error {
	for _, part := range []struct {
		msg   int
		flags netlink.HeaderFlags
		table uint16 // the attribute that holds the table's name
		take  func(attributeMap) error
	}{
		{unix.NFT_MSG_GETTABLE, 0, unix.NFTA_TABLE_NAME, d.takeTable},
		{unix.NFT_MSG_GETCHAIN, netlink.Dump, unix.NFTA_CHAIN_TABLE, d.takeChain},
		{unix.NFT_MSG_GETRULE, netlink.Dump, unix.NFTA_RULE_TABLE, d.takeRule},
		{unix.NFT_MSG_GETOBJ, netlink.Dump, unix.NFTA_OBJ_TABLE, d.takeObject},
		{unix.NFT_MSG_GETSET, netlink.Dump, unix.NFTA_SET_TABLE, d.takeSet},
	} {
		name := failoverTableName(part.table)
		filter, err := netlink.MarshalAttributes([]netlink.Attribute{name})
		if err != nil {
			return err
		}
		replies, err := nfnl.Ask(conn, netlink.Message{
			Header: netlink.Header{Type: nfnl.MessageType(part.msg), Flags: netlink.Request | part.flags},
			Data:   append(nfnl.Header(nftables.TableFamilyINet, 0), filter...),
		})
		if err != nil {
			return err
		}
		for _, m := range replies {
			if len(m.Data) < 4 {
				continue
			}
			attrs, err := attributes(m.Data[4:])
			if err != nil {
				return err
			}
			// Some kinds of dumps ignore the filter.
			if text(attrs[part.table]) != owner.FailoverTable {
				continue
			}
			if err := part.take(attrs); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *failoverDump) takeTable(t attributeMap) error {
	d.present = true
	d.flags = nfnl.Uint32(t[unix.NFTA_TABLE_FLAGS])
	d.comment, _ = nfnl.UserdataString(t[nfnl.TableUserdata], nfnl.TableComment)
	return nil
}

func (d *failoverDump) takeChain(c attributeMap) error {
	hook, err := attributes(c[unix.NFTA_CHAIN_HOOK])
	d.chains[text(c[unix.NFTA_CHAIN_NAME])] = chainShape{
		kind:     text(c[unix.NFTA_CHAIN_TYPE]),
		hook:     nfnl.Uint32(hook[unix.NFTA_HOOK_HOOKNUM]),
		priority: int32(nfnl.Uint32(hook[unix.NFTA_HOOK_PRIORITY])),
		policy:   nfnl.Uint32(c[unix.NFTA_CHAIN_POLICY]),
	}
	return err
}

func (d *failoverDump) takeRule(r attributeMap) error {
	chain := text(r[unix.NFTA_RULE_CHAIN])
	d.rules[chain] = append(d.rules[chain], r[unix.NFTA_RULE_EXPRESSIONS])
	return nil
}

func (d *failoverDump) takeObject(o attributeMap) error {
	for _, k := range iptables.CounterKeys() {
		if nfnl.Uint32(o[unix.NFTA_OBJ_TYPE]) != unix.NFT_OBJECT_COUNTER || text(o[unix.NFTA_OBJ_NAME]) != failoverCounter(k) {
			continue
		}
		data, err := attributes(o[unix.NFTA_OBJ_DATA])
		if packets := data[unix.NFTA_COUNTER_PACKETS]; len(packets) == 8 {
			d.counters[k] = binary.BigEndian.Uint64(packets)
		}
		return err
	}
	d.others++
	return nil
}

func (d *failoverDump) takeSet(attributeMap) error {
	d.others++
	return nil
}

// is reports whether the table is the one that failoverTransaction makes of the chains.
func (d *failoverDump) is(want []failoverChain) bool {
	if !d.present || d.comment != failoverComment || d.flags != 0 || d.others != 0 ||
		len(d.chains) != len(want) || len(d.counters) != len(iptables.CounterKeys()) {
		return false
	}
	for _, chain := range want {
		var shape chainShape
		if chain.hook != nil {
			shape = chainShape{string(chain.kind), uint32(*chain.hook), int32(chain.priority), uint32(nftables.ChainPolicyAccept)}
		}
		have := d.rules[chain.name]
		if d.chains[chain.name] != shape || len(have) != len(chain.rules) {
			return false
		}
		for i, rule := range chain.rules {
			exprs, err := rule.expressions()
			if err != nil || !holds(have[i], exprs) {
				return false
			}
		}
	}
	return true
}

// holds reports whether a dump has every attribute that was sent, with the same value
// and the same number of each. The kernel adds defaults for attributes that were not
// sent; newer kernels add more of them.
func holds(dumped, sent []byte) bool {
	have, err := netlink.UnmarshalAttributes(dumped)
	if err != nil {
		return false
	}
	want, err := netlink.UnmarshalAttributes(sent)
	if err != nil {
		return false
	}
	for _, w := range want {
		i := slices.IndexFunc(have, sameType(w))
		if i < 0 {
			return false
		}
		same := slices.Equal(have[i].Data, w.Data)
		if w.Type&netlink.Nested != 0 {
			same = holds(have[i].Data, w.Data)
		}
		if !same {
			return false
		}
		have = slices.Delete(have, i, i+1)
	}
	return !slices.ContainsFunc(want, func(w netlink.Attribute) bool { return slices.ContainsFunc(have, sameType(w)) })
}

func sameType(a netlink.Attribute) func(netlink.Attribute) bool {
	return func(b netlink.Attribute) bool { return a.Type&attrTypeMask == b.Type&attrTypeMask }
}

// pairs reads the pairs from the rules that rewrite queries. It skips all other rules;
// method is tells whether there are any.
func (d *failoverDump) pairs() []Pair {
	var out []Pair
	for _, rule := range d.rules["prerouting"] {
		exprs, err := netlink.UnmarshalAttributes(rule)
		if err != nil || len(exprs) != queryRuleExprs {
			continue
		}
		listen, _ := netip.AddrFromSlice(exprValue(exprs[queryRuleListen]))
		service, _ := netip.AddrFromSlice(exprValue(exprs[queryRuleService]))
		port := exprValue(exprs[queryRulePort])
		pair := Pair{Listen: listen, Service: service}
		if len(port) == 2 {
			pair.Ports = []uint16{binary.BigEndian.Uint16(port)}
		}
		if len(pair.Ports) == 1 && pair.Validate() == nil {
			out = append(out, pair)
		}
	}
	out, err := normalizeFailover(out)
	if err != nil {
		return nil
	}
	return out
}

// exprValue returns the constant of a cmp or immediate expression, or the mask of a
// bitwise one; nil if there is none.
func exprValue(e netlink.Attribute) []byte {
	at := map[string]uint16{"cmp": unix.NFTA_CMP_DATA, "immediate": unix.NFTA_IMMEDIATE_DATA, "bitwise": unix.NFTA_BITWISE_MASK}
	outer, err := attributes(e.Data)
	if err != nil {
		return nil
	}
	data, err := attributes(outer[unix.NFTA_EXPR_DATA])
	if err != nil {
		return nil
	}
	value, err := attributes(data[at[text(outer[unix.NFTA_EXPR_NAME])]])
	if err != nil {
		return nil
	}
	return value[unix.NFTA_DATA_VALUE]
}

// attrTypeMask is NLA_TYPE_MASK of linux/netlink.h: the type without flags.
const attrTypeMask = 0x3fff

// attributeMap holds the attributes of one object. Each type occurs once.
type attributeMap map[uint16][]byte

func attributes(data []byte) (attributeMap, error) {
	attrs, err := netlink.UnmarshalAttributes(data)
	out := make(attributeMap, len(attrs))
	for _, a := range attrs {
		out[a.Type&attrTypeMask] = a.Data
	}
	return out, err
}

func text(attr []byte) string { return strings.TrimSuffix(string(attr), "\x00") }
