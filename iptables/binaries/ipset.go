package binaries

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// xtables rules can add the addresses of packets to sets of ip_set, and match them. We
// make the sets over netlink, so the program ipset is not needed.

// From include/uapi/linux/netfilter/nfnetlink.h and ipset/ip_set.h.
const (
	subsysIPSet   = 6 // NFNL_SUBSYS_IPSET
	ipsetProtocol = 6 // IPSET_PROTOCOL_MIN, which all kernels since 2.6.39 speak

	ipsetCreate  = 2  // IPSET_CMD_CREATE
	ipsetDestroy = 3  // IPSET_CMD_DESTROY
	ipsetFlush   = 4  // IPSET_CMD_FLUSH
	ipsetList    = 7  // IPSET_CMD_LIST
	ipsetAdd     = 9  // IPSET_CMD_ADD
	ipsetDelete  = 10 // IPSET_CMD_DEL

	ipsetAttrProtocol = 1
	ipsetAttrSetName  = 2
	ipsetAttrTypeName = 3
	ipsetAttrRevision = 4
	ipsetAttrFamily   = 5
	ipsetAttrData     = 7
	ipsetAttrADT      = 8

	ipsetAttrIP      = 1
	ipsetAttrPort    = 4
	ipsetAttrTimeout = 6
	ipsetAttrProto   = 7
	ipsetAttrMaxElem = 19
	ipsetAttrIP2     = 20

	ipsetErrBusy = unix.Errno(4100) // IPSET_ERR_BUSY: a rule refers to the set
	ipsetErrFull = unix.Errno(4352) // IPSET_ERR_HASH_FULL
)

// Types of sets. The first revision of each is enough.
const (
	setOfAddresses = "hash:ip"
	setOfTuples    = "hash:ip,port,ip"
)

// setSize bounds how many elements packets can add to a set.
const setSize = 65536

// element is an element of a set: an address, or, with a protocol, a tuple of a client's
// address and port and the address that it asks.
type element struct {
	addr    netip.Addr
	proto   iptables.Proto
	port    uint16
	other   netip.Addr
	timeout time.Duration // whole seconds; 0: never
}

func tupleOf(c iptables.Connection) element {
	return element{addr: c.Client.Addr(), proto: iptables.TCP, port: c.Client.Port(), other: c.Listen.Addr(), timeout: connectionTimeout}
}

// sets is a connection to ip_set.
type sets struct{ conn *netlink.Conn }

func dialSets() (*sets, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("ipset: open a netfilter netlink socket: %w", err)
	}
	return &sets{conn}, nil
}

// withSets runs f on a connection to ip_set.
func withSets(f func(*sets) error) error {
	s, err := dialSets()
	if err != nil {
		return err
	}
	return errors.Join(f(s), s.conn.Close())
}

func (s *sets) request(cmd int, flags netlink.HeaderFlags, set string, attrs ...netlink.Attribute) ([]netlink.Message, error) {
	all := []netlink.Attribute{{Type: ipsetAttrProtocol, Data: []byte{ipsetProtocol}}}
	if set != "" {
		all = append(all, netlink.Attribute{Type: ipsetAttrSetName, Data: append([]byte(set), 0)})
	}
	data, err := netlink.MarshalAttributes(append(all, attrs...))
	if err != nil {
		return nil, err
	}
	return s.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(subsysIPSet<<8 | cmd), Flags: netlink.Request | flags},
		Data:   append([]byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}, data...),
	})
}

// create makes a set unless it exists.
func (s *sets) create(set, typeName string, f iptables.Family, timeout time.Duration, room uint32) error {
	family := byte(unix.NFPROTO_IPV4)
	if f == iptables.IPv6 {
		family = unix.NFPROTO_IPV6
	}
	options := []netlink.Attribute{inNetworkOrder(ipsetAttrMaxElem, room)}
	if timeout > 0 {
		options = append(options, inNetworkOrder(ipsetAttrTimeout, uint32(timeout/time.Second)))
	}
	data, err := netlink.MarshalAttributes(options)
	if err != nil {
		return err
	}
	_, err = s.request(ipsetCreate, netlink.Acknowledge|netlink.Create, set,
		netlink.Attribute{Type: ipsetAttrTypeName, Data: append([]byte(typeName), 0)},
		netlink.Attribute{Type: ipsetAttrRevision, Data: []byte{0}},
		netlink.Attribute{Type: ipsetAttrFamily, Data: []byte{family}},
		netlink.Attribute{Type: netlink.Nested | ipsetAttrData, Data: data},
	)
	return explainSet("create", set, err)
}

// add puts an element into a set, or renews its timeout.
func (s *sets) add(set string, e element) error {
	attrs := []netlink.Attribute{ipAttribute(ipsetAttrIP, e.addr)}
	if e.proto != 0 {
		attrs = append(attrs,
			netlink.Attribute{Type: netlink.NetByteOrder | ipsetAttrPort, Data: binary.BigEndian.AppendUint16(nil, e.port)},
			netlink.Attribute{Type: ipsetAttrProto, Data: []byte{byte(e.proto)}},
			ipAttribute(ipsetAttrIP2, e.other),
		)
	}
	if e.timeout > 0 {
		attrs = append(attrs, inNetworkOrder(ipsetAttrTimeout, uint32(e.timeout/time.Second)))
	}
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return err
	}
	_, err = s.request(ipsetAdd, netlink.Acknowledge, set, netlink.Attribute{Type: netlink.Nested | ipsetAttrData, Data: data})
	return explainSet("add to", set, err)
}

// remove deletes an address from a set. It is no error if the set does not have it:
// only NLM_F_EXCL would make it one (ip_set_core.c).
func (s *sets) remove(set string, a netip.Addr) error {
	data, err := netlink.MarshalAttributes([]netlink.Attribute{ipAttribute(ipsetAttrIP, a)})
	if err != nil {
		return err
	}
	_, err = s.request(ipsetDelete, netlink.Acknowledge, set, netlink.Attribute{Type: netlink.Nested | ipsetAttrData, Data: data})
	return explainSet("delete from", set, err)
}

func (s *sets) flush(set string) error {
	_, err := s.request(ipsetFlush, netlink.Acknowledge, set)
	return explainSet("flush", set, err)
}

// destroy deletes a set. It is no error if there is none.
func (s *sets) destroy(set string) error {
	_, err := s.request(ipsetDestroy, netlink.Acknowledge, set)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return explainSet("destroy", set, err)
}

// list returns the elements of a set.
func (s *sets) list(set string) (elements []element, err error) {
	replies, err := s.request(ipsetList, netlink.Dump, set)
	if err != nil {
		return nil, explainSet("list", set, err)
	}
	for _, m := range replies {
		_, more, err := parseSet(m.Data)
		if err != nil {
			return nil, explainSet("list", set, err)
		}
		elements = append(elements, more...)
	}
	return elements, nil
}

// names lists the sets whose names begin with a prefix.
func (s *sets) names(prefix string) (names []string, err error) {
	replies, err := s.request(ipsetList, netlink.Dump, "")
	if err != nil {
		return nil, explainSet("list", prefix, err)
	}
	seen := map[string]bool{}
	for _, m := range replies {
		name, _, err := parseSet(m.Data)
		if err != nil {
			return nil, explainSet("list", prefix, err)
		}
		if strings.HasPrefix(name, prefix) && !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names, nil
}

func parseSet(data []byte) (name string, elements []element, err error) {
	if len(data) < 4 {
		return "", nil, errors.New("the message has no header")
	}
	ad, err := netlink.NewAttributeDecoder(data[4:])
	if err != nil {
		return "", nil, err
	}
	for ad.Next() {
		switch ad.Type() {
		case ipsetAttrSetName:
			name = ad.String()
		case ipsetAttrADT:
			ad.Nested(func(all *netlink.AttributeDecoder) error {
				for all.Next() {
					all.Nested(func(one *netlink.AttributeDecoder) error {
						elements = append(elements, parseElement(one))
						return nil
					})
				}
				return nil
			})
		}
	}
	return name, elements, ad.Err()
}

func parseElement(ad *netlink.AttributeDecoder) (e element) {
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case ipsetAttrIP:
			ad.Nested(func(ip *netlink.AttributeDecoder) error { e.addr = parseIP(ip); return nil })
		case ipsetAttrIP2:
			ad.Nested(func(ip *netlink.AttributeDecoder) error { e.other = parseIP(ip); return nil })
		case ipsetAttrPort:
			e.port = ad.Uint16()
		case ipsetAttrProto:
			e.proto = iptables.Proto(ad.Uint8())
		case ipsetAttrTimeout:
			e.timeout = time.Duration(ad.Uint32()) * time.Second
		}
	}
	return e
}

func parseIP(ad *netlink.AttributeDecoder) (a netip.Addr) {
	for ad.Next() {
		a, _ = netip.AddrFromSlice(ad.Bytes())
	}
	return a
}

// ipAttribute nests an address as IPSET_ATTR_IPADDR_IPV4 or _IPV6.
func ipAttribute(kind uint16, a netip.Addr) netlink.Attribute {
	family := uint16(1)
	if a.Is6() {
		family = 2
	}
	data, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: netlink.NetByteOrder | family, Data: a.AsSlice()}})
	if err != nil {
		panic(err) // four or sixteen bytes
	}
	return netlink.Attribute{Type: netlink.Nested | kind, Data: data}
}

func inNetworkOrder(kind uint16, v uint32) netlink.Attribute {
	return netlink.Attribute{Type: netlink.NetByteOrder | kind, Data: binary.BigEndian.AppendUint32(nil, v)}
}

func explainSet(verb, set string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("ipset: %s %s: %w (%w)", verb, set, err, iptables.ErrPermission)
	}
	return fmt.Errorf("ipset: %s %s: %w", verb, set, err)
}

// isMissing reports whether a kernel without ip_set answered.
func isMissing(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT)
}
