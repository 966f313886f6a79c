package nfnl

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

// Reading uses no code of google/nftables. It leaves out the expressions that it does
// not know, and a rule without its conditions seems to match always.

// Table is a table of any program.
type Table struct {
	Family  nftables.TableFamily
	Name    string
	Flags   uint32
	Comment string
	Key     []byte // see NewTable
}

// BaseChain is a base chain of any program.
type BaseChain struct {
	Family   nftables.TableFamily
	Table    string
	Name     string
	Kind     string // filter, nat or route
	Hook     uint32
	Priority int32
	Policy   uint32   // NF_DROP or NF_ACCEPT
	devices  []string // at which it is hooked, in families and hooks with devices
	Owned    bool     // only the process that owns the table may change it
}

// Rule is one rule with its expressions in order.
type Rule struct {
	Handle  uint64
	Exprs   []Expression
	Comment string // from nft, or from the comment match of iptables
}

// Expression is one expression of a rule: its name in the kernel
// (struct nft_expr_type) and its attributes by type.
type Expression struct {
	Name  string
	Attrs map[uint16][]byte
}

// Number reads a 32-bit attribute in network byte order; 0 if it is absent.
func (e Expression) Number(attr uint16) uint32 {
	if b := e.Attrs[attr]; len(b) == 4 {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// Has reports whether the attribute is there.
func (e Expression) Has(attr uint16) bool { _, ok := e.Attrs[attr]; return ok }

// Extension returns the name of a match or target of iptables.
func (e Expression) Extension() string { return cString(e.Attrs[unix.NFTA_MATCH_NAME]) }

// SetName returns the name of the set of a lookup.
func (e Expression) SetName() string { return cString(e.Attrs[unix.NFTA_LOOKUP_SET]) }

// Value reads the bytes of a nested struct nft_data.
func (e Expression) Value(attr uint16) []byte {
	return Attributes(e.Attrs[attr])[unix.NFTA_DATA_VALUE]
}

// Element is one element of a set or map.
type Element struct {
	Key, KeyEnd []byte
	Value       []byte   // of a map with data
	Verdict     *Verdict // of a verdict map
	IntervalEnd bool
	Expires     time.Duration // until it times out; 0: never
}

// Verdict is the verdict of a rule or of an element of a verdict map.
type Verdict struct {
	Code  int32
	Chain string
}

// Attributes decodes netlink attributes by type. It leaves out malformed ones.
func Attributes(b []byte) map[uint16][]byte {
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

// nestedOf decodes a nested list of attributes of one type.
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

// Ask makes a request to nf_tables. Our requests are valid, so EINVAL is the answer of a
// kernel without nf_tables (nfnetlink_rcv_msg does not know the subsystem). The error
// then matches EPROTONOSUPPORT, too.
func Ask(conn *netlink.Conn, question netlink.Message) ([]netlink.Message, error) {
	replies, err := conn.Execute(question)
	return replies, unlessAbsent(err)
}

func unlessAbsent(err error) error {
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w (%w)", unix.EPROTONOSUPPORT, err)
	}
	return err
}

// IsAbsent reports whether a kernel without nf_tables answered: the object that was
// asked for does not exist.
func IsAbsent(err error) bool { return errors.Is(err, unix.EPROTONOSUPPORT) }

// Each asks for all objects of one kind and passes them to take one by one, until take
// returns false. It is no error if the objects do not exist. Each keeps nothing, since
// other programs may have very many rules.
func Each(conn *netlink.Conn, msg int, family nftables.TableFamily, take func(data []byte) (more bool), attrs ...netlink.Attribute) error {
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return err
	}
	question, err := conn.Send(netlink.Message{
		Header: netlink.Header{Type: MessageType(msg), Flags: netlink.Request | netlink.Dump},
		Data:   append(Header(family, 0), data...),
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
			return nil // the other messages are discarded
		}
	}
	return nil
}

// Dump returns all objects of a kind of which there are few.
func Dump(conn *netlink.Conn, msg int, family nftables.TableFamily, attrs ...netlink.Attribute) (out [][]byte, err error) {
	err = Each(conn, msg, family, func(data []byte) bool {
		out = append(out, data)
		return true
	}, attrs...)
	return out, err
}

func nameAttribute(typ uint16, name string) netlink.Attribute {
	return netlink.Attribute{Type: typ, Data: append([]byte(name), 0)}
}

// Tables reads all tables of the network namespace.
func Tables(conn *netlink.Conn) ([]Table, error) {
	msgs, err := Dump(conn, unix.NFT_MSG_GETTABLE, nftables.TableFamilyUnspecified)
	var out []Table
	for _, m := range msgs {
		attrs := Attributes(m[4:])
		t := Table{Family: nftables.TableFamily(m[0]), Name: cString(attrs[unix.NFTA_TABLE_NAME])}
		if b := attrs[unix.NFTA_TABLE_FLAGS]; len(b) == 4 {
			t.Flags = binary.BigEndian.Uint32(b)
		}
		t.Comment, _ = UserdataString(attrs[TableUserdata], TableComment)
		t.Key = Userdata(attrs[TableUserdata], TableKey)
		out = append(out, t)
	}
	return out, err
}

// baseChains reads the chains that have a hook.
func baseChains(conn *netlink.Conn) (out []BaseChain, err error) {
	err = Each(conn, unix.NFT_MSG_GETCHAIN, nftables.TableFamilyUnspecified, func(m []byte) bool {
		attrs := Attributes(m[4:])
		h := Attributes(attrs[unix.NFTA_CHAIN_HOOK])
		num, priority := h[unix.NFTA_HOOK_HOOKNUM], h[unix.NFTA_HOOK_PRIORITY]
		if len(num) != 4 || len(priority) != 4 {
			return true
		}
		c := BaseChain{
			Family:   nftables.TableFamily(m[0]),
			Table:    cString(attrs[unix.NFTA_CHAIN_TABLE]),
			Name:     cString(attrs[unix.NFTA_CHAIN_NAME]),
			Kind:     cString(attrs[unix.NFTA_CHAIN_TYPE]),
			Hook:     binary.BigEndian.Uint32(num),
			Priority: int32(binary.BigEndian.Uint32(priority)),
			Policy:   VerdictAccept,
			devices:  hookDevices(h),
		}
		if b := attrs[unix.NFTA_CHAIN_POLICY]; len(b) == 4 {
			c.Policy = binary.BigEndian.Uint32(b)
		}
		out = append(out, c)
		return true
	})
	return out, err
}

// Rules reads the rules of one chain for which wanted returns true, in order. A nil
// wanted reads all.
func Rules(conn *netlink.Conn, family nftables.TableFamily, table, chain string, wanted func(Rule) bool) (out []Rule, err error) {
	err = Each(conn, unix.NFT_MSG_GETRULE, family, func(m []byte) bool {
		attrs := Attributes(m[4:])
		if cString(attrs[unix.NFTA_RULE_CHAIN]) != chain {
			return true // Linux before 4.6 ignores the filter
		}
		var r Rule
		if b := attrs[unix.NFTA_RULE_HANDLE]; len(b) == 8 {
			r.Handle = binary.BigEndian.Uint64(b)
		}
		r.Comment, _ = UserdataString(attrs[unix.NFTA_RULE_USERDATA], userdata.TypeComment)
		for _, b := range nestedOf(attrs[unix.NFTA_RULE_EXPRESSIONS]) {
			parts := Attributes(b)
			e := Expression{Name: cString(parts[unix.NFTA_EXPR_NAME]), Attrs: Attributes(parts[unix.NFTA_EXPR_DATA])}
			if e.Name == "match" && e.Extension() == "comment" {
				r.Comment = cString(e.Attrs[unix.NFTA_MATCH_INFO])
			}
			r.Exprs = append(r.Exprs, e)
		}
		if wanted == nil || wanted(r) {
			out = append(out, r)
		}
		return true
	}, nameAttribute(unix.NFTA_RULE_TABLE, table), nameAttribute(unix.NFTA_RULE_CHAIN, chain))
	return out, err
}

// Elements reads the elements of a set or map for which wanted returns true. A nil
// wanted reads all. A set that does not exist has no elements.
func Elements(conn *netlink.Conn, family nftables.TableFamily, table, set string, wanted func(Element) bool) (out []Element, err error) {
	err = Each(conn, unix.NFT_MSG_GETSETELEM, family, func(m []byte) bool {
		for _, b := range nestedOf(Attributes(m[4:])[unix.NFTA_SET_ELEM_LIST_ELEMENTS]) {
			if e := readElement(b); wanted == nil || wanted(e) {
				out = append(out, e)
			}
		}
		return true
	}, nameAttribute(unix.NFTA_SET_ELEM_LIST_TABLE, table), nameAttribute(unix.NFTA_SET_ELEM_LIST_SET, set))
	return out, err
}

// IsFilledByPackets reports whether the elements of a set or map come or go without a
// transaction: rules add them, or they time out.
func IsFilledByPackets(conn *netlink.Conn, family nftables.TableFamily, table, set string) (bool, error) {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{nameAttribute(unix.NFTA_SET_TABLE, table), nameAttribute(unix.NFTA_SET_NAME, set)})
	if err != nil {
		return false, err
	}
	replies, err := Ask(conn, netlink.Message{
		Header: netlink.Header{Type: MessageType(unix.NFT_MSG_GETSET), Flags: netlink.Request},
		Data:   append(Header(family, 0), attrs...),
	})
	if err != nil || len(replies) == 0 || len(replies[0].Data) < 4 {
		return false, err
	}
	flags := Uint32(Attributes(replies[0].Data[4:])[unix.NFTA_SET_FLAGS])
	return flags&(unix.NFT_SET_EVAL|unix.NFT_SET_TIMEOUT) != 0, nil
}

func readElement(b []byte) Element {
	attrs := Attributes(b)
	data := Attributes(attrs[unix.NFTA_SET_ELEM_DATA])
	e := Element{
		Key:    Attributes(attrs[unix.NFTA_SET_ELEM_KEY])[unix.NFTA_DATA_VALUE],
		KeyEnd: Attributes(attrs[nftables.NFTA_SET_ELEM_KEY_END])[unix.NFTA_DATA_VALUE],
		Value:  data[unix.NFTA_DATA_VALUE],
	}
	if b, ok := data[unix.NFTA_DATA_VERDICT]; ok {
		v := ReadVerdict(b)
		e.Verdict = &v
	}
	if b := attrs[unix.NFTA_SET_ELEM_FLAGS]; len(b) == 4 {
		e.IntervalEnd = binary.BigEndian.Uint32(b)&unix.NFT_SET_ELEM_INTERVAL_END != 0
	}
	if b := attrs[unix.NFTA_SET_ELEM_EXPIRATION]; len(b) == 8 {
		e.Expires = time.Duration(binary.BigEndian.Uint64(b)) * time.Millisecond
	}
	return e
}

// Counters reads the packet counts of a table's named counters.
func Counters(conn *netlink.Conn, family nftables.TableFamily, table string) (map[string]uint64, error) {
	msgs, err := Dump(conn, unix.NFT_MSG_GETOBJ, family, nameAttribute(unix.NFTA_OBJ_TABLE, table))
	out := map[string]uint64{}
	for _, m := range msgs {
		attrs := Attributes(m[4:])
		if cString(attrs[unix.NFTA_OBJ_TABLE]) != table {
			continue
		}
		if b := Attributes(attrs[unix.NFTA_OBJ_DATA])[unix.NFTA_COUNTER_PACKETS]; len(b) == 8 {
			out[cString(attrs[unix.NFTA_OBJ_NAME])] = binary.BigEndian.Uint64(b)
		}
	}
	return out, err
}

// ReadVerdict decodes the attributes of a verdict.
func ReadVerdict(b []byte) Verdict {
	attrs := Attributes(b)
	v := Verdict{Chain: cString(attrs[unix.NFTA_VERDICT_CHAIN])}
	if code := attrs[unix.NFTA_VERDICT_CODE]; len(code) == 4 {
		v.Code = int32(binary.BigEndian.Uint32(code))
	}
	return v
}

// HasChain reports whether a family has a chain for whose name is returns true, in one
// table, or in any table if that is empty. A kernel without nf_tables has none.
func HasChain(cfg Config, f iptables.Family, table string, is func(chain string) bool) (found bool, err error) {
	conn, err := Dial(cfg)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	family := nftables.TableFamilyIPv4
	if f == iptables.IPv6 {
		family = nftables.TableFamilyIPv6
	}
	err = Each(conn, unix.NFT_MSG_GETCHAIN, family, func(m []byte) bool {
		attrs := Attributes(m[4:])
		found = (table == "" || table == cString(attrs[unix.NFTA_CHAIN_TABLE])) && is(cString(attrs[unix.NFTA_CHAIN_NAME]))
		return !found
	})
	if IsAbsent(err) {
		return false, nil
	}
	return found, Explain("list chains", err)
}

// Verdicts: include/uapi/linux/netfilter.h and enum nft_verdicts.
const (
	VerdictDrop   = 0
	VerdictAccept = 1
	VerdictQueue  = 3
	VerdictJump   = -3
	VerdictGoto   = -4
	VerdictReturn = -5
)

// From include/uapi/linux/netfilter/nf_tables.h.
const (
	TableUserdata  = 6  // NFTA_TABLE_USERDATA, since Linux 5.10
	TableFlagOwner = 2  // NFT_TABLE_F_OWNER, since Linux 5.12
	TableComment   = 0  // NFTNL_UDATA_TABLE_COMMENT of libnftnl: nft shows it as the comment
	TableKey       = 84 // ours: nft passes over types that it does not know
)

// String writes a verdict as nft does.
func (v Verdict) String() string {
	switch v.Code {
	case VerdictDrop:
		return "drop"
	case VerdictAccept:
		return "accept"
	case VerdictQueue:
		return "queue"
	case VerdictJump:
		return "jump " + v.Chain
	case VerdictGoto:
		return "goto " + v.Chain
	case VerdictReturn:
		return "return"
	}
	return fmt.Sprintf("[verdict %d]", v.Code)
}

// Final reports whether the verdict decides about the packet.
func (v Verdict) Final() bool {
	return v.Code == VerdictDrop || v.Code == VerdictAccept || v.Code == VerdictQueue
}

// FamilyName returns the family in the words of nft.
func FamilyName(f nftables.TableFamily) string {
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
