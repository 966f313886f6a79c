package nfnl

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// An Encoder turns values of google/nftables into nf_tables messages, in the
// order of the calls. It knows the attributes that our tables need. [Encode]
// returns the first error of any call.
type Encoder struct {
	messages []netlink.Message
	sets     uint32
	err      error
}

// DelTable deletes a table with all that is in it.
func (e *Encoder) DelTable(t *nftables.Table) {
	e.add(unix.NFT_MSG_DELTABLE, 0, t, []netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: nulTerminated(t.Name)},
	})
}

// AddChain adds a chain and returns it.
func (e *Encoder) AddChain(c *nftables.Chain) *nftables.Chain {
	attrs := []netlink.Attribute{
		{Type: unix.NFTA_CHAIN_TABLE, Data: nulTerminated(c.Table.Name)},
		{Type: unix.NFTA_CHAIN_NAME, Data: nulTerminated(c.Name)},
	}
	if c.Hooknum != nil && c.Priority != nil {
		attrs = append(attrs, e.nested(unix.NFTA_CHAIN_HOOK, []netlink.Attribute{
			{Type: unix.NFTA_HOOK_HOOKNUM, Data: be32(uint32(*c.Hooknum))},
			{Type: unix.NFTA_HOOK_PRIORITY, Data: be32(uint32(*c.Priority))},
		}))
	}
	if c.Policy != nil {
		attrs = append(attrs, netlink.Attribute{Type: unix.NFTA_CHAIN_POLICY, Data: be32(uint32(*c.Policy))})
	}
	if c.Type != "" {
		attrs = append(attrs, netlink.Attribute{Type: unix.NFTA_CHAIN_TYPE, Data: nulTerminated(string(c.Type))})
	}
	e.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, c.Table, attrs)
	return c
}

// DelChain deletes a chain. No rule may lead to it.
func (e *Encoder) DelChain(c *nftables.Chain) {
	e.add(unix.NFT_MSG_DELCHAIN, 0, c.Table, []netlink.Attribute{
		{Type: unix.NFTA_CHAIN_TABLE, Data: nulTerminated(c.Table.Name)},
		{Type: unix.NFTA_CHAIN_NAME, Data: nulTerminated(c.Name)},
	})
}

// FlushChain deletes all rules of a chain.
func (e *Encoder) FlushChain(c *nftables.Chain) {
	e.add(unix.NFT_MSG_DELRULE, 0, c.Table, ruleChain(c.Table, c))
}

// AddRule appends a rule to its chain.
func (e *Encoder) AddRule(r *nftables.Rule) { e.rule(r, netlink.Append) }

// InsertRule puts a rule in front of its chain.
func (e *Encoder) InsertRule(r *nftables.Rule) { e.rule(r, 0) }

func (e *Encoder) rule(r *nftables.Rule, flags netlink.HeaderFlags) {
	var exprs []netlink.Attribute
	for _, x := range r.Exprs {
		data, err := expr.Marshal(byte(r.Table.Family), x)
		e.fail(err)
		exprs = append(exprs, netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: data})
	}
	attrs := append(ruleChain(r.Table, r.Chain), e.nested(unix.NFTA_RULE_EXPRESSIONS, exprs))
	if proto := compatProtocol(r.Exprs); proto != 0 {
		attrs = append(attrs, e.nested(unix.NFTA_RULE_COMPAT, []netlink.Attribute{
			{Type: unix.NFTA_RULE_COMPAT_PROTO, Data: be32(proto)},
			{Type: unix.NFTA_RULE_COMPAT_FLAGS, Data: be32(0)},
		}))
	}
	if r.UserData != nil {
		attrs = append(attrs, netlink.Attribute{Type: unix.NFTA_RULE_USERDATA, Data: r.UserData})
	}
	e.add(unix.NFT_MSG_NEWRULE, netlink.Create|flags, r.Table, attrs)
}

// compatProtocol is the protocol that a rule with a match of xt_tcpudp must name:
// the kernel checks the match against it (nft_match_init in
// net/netfilter/nft_compat.c).
func compatProtocol(exprs []expr.Any) uint32 {
	for _, x := range exprs {
		if match, ok := x.(*expr.Match); ok {
			switch match.Info.(type) {
			case *xt.Tcp:
				return unix.IPPROTO_TCP
			case *xt.Udp:
				return unix.IPPROTO_UDP
			}
		}
	}
	return 0
}

// DelRule deletes the rule with the handle of r.
func (e *Encoder) DelRule(r *nftables.Rule) error {
	if r.Handle == 0 {
		return errors.New("nftables: a rule to delete has no handle") // without one the kernel would flush the chain
	}
	e.add(unix.NFT_MSG_DELRULE, 0, r.Table, append(ruleChain(r.Table, r.Chain),
		netlink.Attribute{Type: unix.NFTA_RULE_HANDLE, Data: binary.BigEndian.AppendUint64(nil, r.Handle)}))
	return e.err
}

func ruleChain(t *nftables.Table, c *nftables.Chain) []netlink.Attribute {
	return []netlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: nulTerminated(t.Name)},
		{Type: unix.NFTA_RULE_CHAIN, Data: nulTerminated(c.Name)},
	}
}

// AddCounter adds a named counter.
func (e *Encoder) AddCounter(t *nftables.Table, name string) {
	data, err := expr.MarshalExprData(byte(t.Family), &expr.Counter{})
	e.fail(err)
	e.add(unix.NFT_MSG_NEWOBJ, netlink.Create, t, []netlink.Attribute{
		{Type: unix.NFTA_OBJ_TABLE, Data: nulTerminated(t.Name)},
		{Type: unix.NFTA_OBJ_NAME, Data: nulTerminated(name)},
		{Type: unix.NFTA_OBJ_TYPE, Data: be32(uint32(nftables.ObjTypeCounter))},
		{Type: unix.NLA_F_NESTED | unix.NFTA_OBJ_DATA, Data: data},
	})
}

// AddSet adds an empty set and numbers it within the transaction.
func (e *Encoder) AddSet(s *nftables.Set) error {
	e.sets++
	s.ID = e.sets
	var flags uint32
	for flag, set := range map[uint32]bool{
		unix.NFT_SET_INTERVAL: s.Interval, unix.NFT_SET_TIMEOUT: s.HasTimeout,
		unix.NFT_SET_EVAL: s.Dynamic, nftables.NFT_SET_CONCAT: s.Concatenation,
	} {
		if set {
			flags |= flag
		}
	}
	attrs := []netlink.Attribute{
		{Type: unix.NFTA_SET_TABLE, Data: nulTerminated(s.Table.Name)},
		{Type: unix.NFTA_SET_NAME, Data: nulTerminated(s.Name)},
		{Type: unix.NFTA_SET_FLAGS, Data: be32(flags)},
		{Type: unix.NFTA_SET_KEY_TYPE, Data: be32(s.KeyType.GetNFTMagic())},
		{Type: unix.NFTA_SET_KEY_LEN, Data: be32(s.KeyType.Bytes)},
		{Type: unix.NFTA_SET_ID, Data: be32(s.ID)},
	}
	if s.Size > 0 {
		attrs = append(attrs, e.nested(unix.NFTA_SET_DESC, []netlink.Attribute{
			{Type: unix.NFTA_SET_DESC_SIZE, Data: be32(s.Size)},
		}))
	}
	// Only nft reads the byte order of the keys.
	var comment []byte
	switch {
	case s.Interval || s.KeyByteOrder == binaryutil.BigEndian:
		comment = userdata.AppendUint32(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, 2)
	case s.KeyByteOrder == binaryutil.NativeEndian:
		comment = userdata.AppendUint32(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, 1)
	}
	if comment != nil {
		attrs = append(attrs, netlink.Attribute{Type: unix.NFTA_SET_USERDATA, Data: comment})
	}
	e.add(unix.NFT_MSG_NEWSET, netlink.Create, s.Table, attrs)
	return e.err
}

// FlushSet deletes all elements of a set.
func (e *Encoder) FlushSet(s *nftables.Set) {
	e.add(unix.NFT_MSG_DELSETELEM, 0, s.Table, []netlink.Attribute{
		{Type: unix.NFTA_SET_TABLE, Data: nulTerminated(s.Table.Name)},
		{Type: unix.NFTA_SET_NAME, Data: nulTerminated(s.Name)},
	})
}

// AddElements adds elements to a set. They must fit into one attribute.
func (e *Encoder) AddElements(s *nftables.Set, elements []nftables.SetElement) error {
	return e.elements(unix.NFT_MSG_NEWSETELEM, s, elements)
}

// DelElements deletes elements that are in the set.
func (e *Encoder) DelElements(s *nftables.Set, elements []nftables.SetElement) error {
	return e.elements(unix.NFT_MSG_DELSETELEM, s, elements)
}

func (e *Encoder) elements(msg int, s *nftables.Set, elements []nftables.SetElement) error {
	var list []netlink.Attribute
	for i, element := range elements {
		var attrs []netlink.Attribute
		if element.IntervalEnd {
			attrs = append(attrs, netlink.Attribute{Type: unix.NFTA_SET_ELEM_FLAGS, Data: be32(unix.NFT_SET_ELEM_INTERVAL_END)})
		}
		attrs = append(attrs, e.nested(unix.NFTA_SET_ELEM_KEY, []netlink.Attribute{{Type: unix.NFTA_DATA_VALUE, Data: element.Key}}))
		if s.HasTimeout && element.Timeout != 0 {
			attrs = append(attrs, netlink.Attribute{Type: unix.NFTA_SET_ELEM_TIMEOUT, Data: binary.BigEndian.AppendUint64(nil, uint64(element.Timeout.Milliseconds()))})
		}
		list = append(list, e.nested(uint16(i+1), attrs))
	}
	e.add(msg, netlink.Create, s.Table, []netlink.Attribute{
		{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: nulTerminated(s.Name)},
		{Type: unix.NFTA_SET_ELEM_LIST_SET_ID, Data: be32(s.ID)},
		{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: nulTerminated(s.Table.Name)},
		e.nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, list),
	})
	return e.err
}

func (e *Encoder) add(msg int, flags netlink.HeaderFlags, t *nftables.Table, attrs []netlink.Attribute) {
	m := netlink.Message{
		Header: netlink.Header{Type: MessageType(msg), Flags: netlink.Request | netlink.Acknowledge | flags},
		Data:   append(Header(t.Family, 0), e.marshal(attrs)...),
	}
	e.messages = append(e.messages, m)
}

func (e *Encoder) nested(kind uint16, attrs []netlink.Attribute) netlink.Attribute {
	return netlink.Attribute{Type: unix.NLA_F_NESTED | kind, Data: e.marshal(attrs)}
}

// marshal refuses an attribute that is too long: struct nlattr has 16 bits for
// the length.
func (e *Encoder) marshal(attrs []netlink.Attribute) []byte {
	for _, a := range attrs {
		if longest := 1<<16 - 1 - unix.NLA_HDRLEN; len(a.Data) > longest {
			e.fail(fmt.Errorf("nftables: attribute %d has %d bytes; netlink carries %d at most", a.Type&^unix.NLA_F_NESTED, len(a.Data), longest))
			return nil
		}
	}
	data, err := netlink.MarshalAttributes(attrs)
	e.fail(err)
	return data
}

func (e *Encoder) fail(err error) {
	if e.err == nil {
		e.err = err
	}
}

func nulTerminated(s string) []byte { return append([]byte(s), 0) }

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
