package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// Reading uses no code of google/nftables: it leaves out the expressions it
// does not know, and a rule without its conditions reads as one that always
// matches.

// tableHeader is a table of anybody.
type tableHeader struct {
	family  nftables.TableFamily
	name    string
	flags   uint32
	comment string
}

// chainHeader is a base chain of anybody.
type chainHeader struct {
	family   nftables.TableFamily
	table    string
	name     string
	kind     string // filter, nat or route
	hook     uint32
	priority int32
	policy   uint32   // NF_DROP or NF_ACCEPT
	devices  []string // at which it is hooked, in families and hooks that have such
	owned    bool     // by a process that alone may change the table
}

// dumpedRule is one rule with its expressions in order.
type dumpedRule struct {
	handle  uint64
	exprs   []expression
	comment string // of nft, or of the comment match of iptables
}

// expression is one expression of a rule: its name in the kernel
// (struct nft_expr_type) and its attributes by type.
type expression struct {
	name  string
	attrs map[uint16][]byte
}

// number reads a 32-bit attribute in network byte order; 0 if it is absent.
func (e expression) number(attr uint16) uint32 {
	if b := e.attrs[attr]; len(b) == 4 {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// has reports whether the attribute is there.
func (e expression) has(attr uint16) bool { _, ok := e.attrs[attr]; return ok }

// extension is the name of a match or target of iptables.
func (e expression) extension() string { return cString(e.attrs[unix.NFTA_MATCH_NAME]) }

// set is the name of the set that a lookup looks into.
func (e expression) set() string { return cString(e.attrs[unix.NFTA_LOOKUP_SET]) }

// value reads the bytes of a nested struct nft_data.
func (e expression) value(attr uint16) []byte {
	return attributesOf(e.attrs[attr])[unix.NFTA_DATA_VALUE]
}

// element is one element of a set or map.
type element struct {
	key, keyEnd []byte
	value       []byte   // of a map with data
	verdict     *verdict // of a verdict map
	intervalEnd bool
	expires     time.Duration // 0: never
}

// verdict is what a rule or a verdict map ends with.
type verdict struct {
	code  int32
	chain string
}

// attributesOf splits a run of netlink attributes; malformed ones are left out.
func attributesOf(b []byte) map[uint16][]byte {
	out := map[uint16][]byte{}
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return out
	}
	for ad.Next() {
		out[ad.Type()] = ad.Bytes()
	}
	return out
}

// nestedOf splits a nested list of attributes of one type.
func nestedOf(b []byte) [][]byte {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return nil
	}
	var out [][]byte
	for ad.Next() {
		out = append(out, ad.Bytes())
	}
	return out
}

func cString(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

// ask puts a question to nf_tables. None of ours is invalid in itself, so that this
// answer is that of a kernel without nf_tables (nfnetlink_rcv_msg knows no such
// subsystem); the error is then EPROTONOSUPPORT as well.
func ask(conn *netlink.Conn, question netlink.Message) ([]netlink.Message, error) {
	replies, err := conn.Execute(question)
	return replies, unlessAbsent(err)
}

func unlessAbsent(err error) error {
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w (%w)", unix.EPROTONOSUPPORT, err)
	}
	return err
}

// isAbsent reports whether a kernel without nf_tables answered: whatever was asked
// for, there is none.
func isAbsent(err error) bool { return errors.Is(err, unix.EPROTONOSUPPORT) }

// each asks for all objects of one kind and hands over one after the other, until
// take wants no more; what is gone meanwhile is nothing. Other programs' rules
// may be a great many, so that nothing of them is kept here.
func each(conn *netlink.Conn, msg int, family nftables.TableFamily, take func(data []byte) (more bool), attrs ...netlink.Attribute) error {
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return err
	}
	question, err := conn.Send(netlink.Message{
		Header: netlink.Header{Type: nftMessage(msg), Flags: netlink.Request | netlink.Dump},
		Data:   append(nfgenmsg(family, 0), data...),
	})
	if err != nil {
		return err
	}
	for m, err := range conn.ReceiveIter() {
		if err == nil {
			err = netlink.Validate(question, []netlink.Message{m})
		}
		switch {
		case errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return unlessAbsent(err)
		case len(m.Data) >= 4 && !take(m.Data):
			return nil // the rest is thrown away
		}
	}
	return nil
}

// dump collects all objects of one kind, of which there are few.
func dump(conn *netlink.Conn, msg int, family nftables.TableFamily, attrs ...netlink.Attribute) (out [][]byte, err error) {
	err = each(conn, msg, family, func(data []byte) bool {
		out = append(out, data)
		return true
	}, attrs...)
	return out, err
}

func nameAttribute(typ uint16, name string) netlink.Attribute {
	return netlink.Attribute{Type: typ, Data: append([]byte(name), 0)}
}

func dumpTables(conn *netlink.Conn) ([]tableHeader, error) {
	msgs, err := dump(conn, unix.NFT_MSG_GETTABLE, nftables.TableFamilyUnspecified)
	var out []tableHeader
	for _, m := range msgs {
		attrs := attributesOf(m[4:])
		t := tableHeader{family: nftables.TableFamily(m[0]), name: cString(attrs[unix.NFTA_TABLE_NAME])}
		if b := attrs[unix.NFTA_TABLE_FLAGS]; len(b) == 4 {
			t.flags = binary.BigEndian.Uint32(b)
		}
		t.comment, _ = userdata.GetString(attrs[attrTableUserdata], udataTableCommentTLV)
		out = append(out, t)
	}
	return out, err
}

// dumpBaseChains reads the chains that have a hook.
func dumpBaseChains(conn *netlink.Conn) (out []chainHeader, err error) {
	err = each(conn, unix.NFT_MSG_GETCHAIN, nftables.TableFamilyUnspecified, func(m []byte) bool {
		attrs := attributesOf(m[4:])
		h := attributesOf(attrs[unix.NFTA_CHAIN_HOOK])
		num, priority := h[unix.NFTA_HOOK_HOOKNUM], h[unix.NFTA_HOOK_PRIORITY]
		if len(num) != 4 || len(priority) != 4 {
			return true
		}
		c := chainHeader{
			family:   nftables.TableFamily(m[0]),
			table:    cString(attrs[unix.NFTA_CHAIN_TABLE]),
			name:     cString(attrs[unix.NFTA_CHAIN_NAME]),
			kind:     cString(attrs[unix.NFTA_CHAIN_TYPE]),
			hook:     binary.BigEndian.Uint32(num),
			priority: int32(binary.BigEndian.Uint32(priority)),
			policy:   verdictAccept,
			devices:  hookDevices(h),
		}
		if b := attrs[unix.NFTA_CHAIN_POLICY]; len(b) == 4 {
			c.policy = binary.BigEndian.Uint32(b)
		}
		out = append(out, c)
		return true
	})
	return out, err
}

// dumpRules reads the rules of one chain that are wanted, in order; nil wants all.
func dumpRules(conn *netlink.Conn, family nftables.TableFamily, table, chain string, wanted func(dumpedRule) bool) (out []dumpedRule, err error) {
	err = each(conn, unix.NFT_MSG_GETRULE, family, func(m []byte) bool {
		attrs := attributesOf(m[4:])
		if cString(attrs[unix.NFTA_RULE_CHAIN]) != chain {
			return true // Linux before 4.6 filtered by nothing
		}
		var r dumpedRule
		if b := attrs[unix.NFTA_RULE_HANDLE]; len(b) == 8 {
			r.handle = binary.BigEndian.Uint64(b)
		}
		r.comment, _ = userdata.GetString(attrs[unix.NFTA_RULE_USERDATA], userdata.TypeComment)
		for _, b := range nestedOf(attrs[unix.NFTA_RULE_EXPRESSIONS]) {
			parts := attributesOf(b)
			e := expression{name: cString(parts[unix.NFTA_EXPR_NAME]), attrs: attributesOf(parts[unix.NFTA_EXPR_DATA])}
			if e.name == "match" && e.extension() == "comment" {
				r.comment = cString(e.attrs[unix.NFTA_MATCH_INFO])
			}
			r.exprs = append(r.exprs, e)
		}
		if wanted == nil || wanted(r) {
			out = append(out, r)
		}
		return true
	}, nameAttribute(unix.NFTA_RULE_TABLE, table), nameAttribute(unix.NFTA_RULE_CHAIN, chain))
	return out, err
}

// dumpElements reads the elements of a set or map that are wanted, nil wants all;
// one that is not there has no elements.
func dumpElements(conn *netlink.Conn, family nftables.TableFamily, table, set string, wanted func(element) bool) (out []element, err error) {
	err = each(conn, unix.NFT_MSG_GETSETELEM, family, func(m []byte) bool {
		for _, b := range nestedOf(attributesOf(m[4:])[unix.NFTA_SET_ELEM_LIST_ELEMENTS]) {
			if e := readElement(b); wanted == nil || wanted(e) {
				out = append(out, e)
			}
		}
		return true
	}, nameAttribute(unix.NFTA_SET_ELEM_LIST_TABLE, table), nameAttribute(unix.NFTA_SET_ELEM_LIST_SET, set))
	return out, err
}

func readElement(b []byte) element {
	attrs := attributesOf(b)
	data := attributesOf(attrs[unix.NFTA_SET_ELEM_DATA])
	e := element{
		key:    attributesOf(attrs[unix.NFTA_SET_ELEM_KEY])[unix.NFTA_DATA_VALUE],
		keyEnd: attributesOf(attrs[nftables.NFTA_SET_ELEM_KEY_END])[unix.NFTA_DATA_VALUE],
		value:  data[unix.NFTA_DATA_VALUE],
	}
	if b, ok := data[unix.NFTA_DATA_VERDICT]; ok {
		v := readVerdict(b)
		e.verdict = &v
	}
	if b := attrs[unix.NFTA_SET_ELEM_FLAGS]; len(b) == 4 {
		e.intervalEnd = binary.BigEndian.Uint32(b)&unix.NFT_SET_ELEM_INTERVAL_END != 0
	}
	if b := attrs[unix.NFTA_SET_ELEM_EXPIRATION]; len(b) == 8 {
		e.expires = time.Duration(binary.BigEndian.Uint64(b)) * time.Millisecond
	}
	return e
}

// dumpCounters reads the packet counts of a table's named counters.
func dumpCounters(conn *netlink.Conn, family nftables.TableFamily, table string) (map[string]uint64, error) {
	msgs, err := dump(conn, unix.NFT_MSG_GETOBJ, family, nameAttribute(unix.NFTA_OBJ_TABLE, table))
	out := map[string]uint64{}
	for _, m := range msgs {
		attrs := attributesOf(m[4:])
		if cString(attrs[unix.NFTA_OBJ_TABLE]) != table {
			continue
		}
		if b := attributesOf(attrs[unix.NFTA_OBJ_DATA])[unix.NFTA_COUNTER_PACKETS]; len(b) == 8 {
			out[cString(attrs[unix.NFTA_OBJ_NAME])] = binary.BigEndian.Uint64(b)
		}
	}
	return out, err
}

func readVerdict(b []byte) verdict {
	attrs := attributesOf(b)
	v := verdict{chain: cString(attrs[unix.NFTA_VERDICT_CHAIN])}
	if code := attrs[unix.NFTA_VERDICT_CODE]; len(code) == 4 {
		v.code = int32(binary.BigEndian.Uint32(code))
	}
	return v
}

// HasChain reports whether a family has a chain of such a name, in a table or, with
// an empty name, in any. Without nf_tables there is none.
func HasChain(cfg Config, f iptables.Family, table string, is func(chain string) bool) (found bool, err error) {
	conn, err := inspectConn(cfg)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	family := nftables.TableFamilyIPv4
	if f == iptables.IPv6 {
		family = nftables.TableFamilyIPv6
	}
	err = each(conn, unix.NFT_MSG_GETCHAIN, family, func(m []byte) bool {
		attrs := attributesOf(m[4:])
		found = (table == "" || table == cString(attrs[unix.NFTA_CHAIN_TABLE])) && is(cString(attrs[unix.NFTA_CHAIN_NAME]))
		return !found
	})
	if isAbsent(err) {
		return false, nil
	}
	return found, explain("list chains", err)
}

// Verdicts: include/uapi/linux/netfilter.h and enum nft_verdicts.
const (
	verdictDrop   = 0
	verdictAccept = 1
	verdictQueue  = 3
	verdictJump   = -3
	verdictGoto   = -4
	verdictReturn = -5
)

// From include/uapi/linux/netfilter/nf_tables.h.
const (
	attrTableUserdata    = 6 // NFTA_TABLE_USERDATA, since Linux 5.10
	flagTableOwner       = 2 // NFT_TABLE_F_OWNER, since Linux 5.12
	udataTableCommentTLV = 0 // NFTNL_UDATA_TABLE_COMMENT of libnftnl: nft shows it as the comment
)

// String writes a verdict as nft does.
func (v verdict) String() string {
	switch v.code {
	case verdictDrop:
		return "drop"
	case verdictAccept:
		return "accept"
	case verdictQueue:
		return "queue"
	case verdictJump:
		return "jump " + v.chain
	case verdictGoto:
		return "goto " + v.chain
	case verdictReturn:
		return "return"
	}
	return fmt.Sprintf("[verdict %d]", v.code)
}

// final reports whether the verdict decides about the packet.
func (v verdict) final() bool {
	return v.code == verdictDrop || v.code == verdictAccept || v.code == verdictQueue
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyNetdev:
		return "netdev"
	case nftables.TableFamilyBridge:
		return "bridge"
	case nftables.TableFamilyARP:
		return "arp"
	}
	return "family"
}
