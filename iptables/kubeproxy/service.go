package kubeproxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// IsService reports whether kube-proxy's rules rewrite packets to the address:
// in nftables mode it stands in the set cluster-ips of the table kube-proxy, in
// iptables mode with the nft binaries in a rule of the chain KUBE-SERVICES.
// Rules of legacy iptables cannot be read over nftables: package legacy asks
// for them.
func IsService(cfg Config, a netip.Addr) (bool, error) {
	family := nftables.TableFamilyIPv4
	if a.Is6() {
		family = nftables.TableFamilyIPv6
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: cfg.NetNS})
	if err != nil {
		return false, nfnl.Explain("open a netfilter netlink socket", err)
	}
	defer conn.Close()
	inSet, err := mentions(conn, unix.NFT_MSG_GETSETELEM, family, a,
		"kube-proxy", named(unix.NFTA_SET_ELEM_LIST_SET, "cluster-ips"))
	if inSet || err != nil {
		return inSet, err
	}
	return mentions(conn, unix.NFT_MSG_GETRULE, family, a,
		"nat", named(unix.NFTA_RULE_CHAIN, "KUBE-SERVICES"))
}

func named(attr uint16, name string) netlink.Attribute {
	return netlink.Attribute{Type: attr, Data: append([]byte(name), 0)}
}

// HasEndpoints reports whether kube-proxy's rules lead packets to an address and
// port anywhere, over UDP or TCP: a Service has it, and somebody is behind it.
// In nftables mode that is one look-up in the map service-ips, where only
// Services with endpoints stand; in iptables mode with the nft binaries the same
// goes for the rules of KUBE-SERVICES in the table nat
// (pkg/proxy/{nftables,iptables}/proxier.go in kubernetes).
func HasEndpoints(cfg Config, service netip.AddrPort) (bool, error) {
	a, family := service.Addr(), nftables.TableFamilyIPv4
	if a.Is6() {
		family = nftables.TableFamilyIPv6
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: cfg.NetNS})
	if err != nil {
		return false, nfnl.Explain("open a netfilter netlink socket", err)
	}
	defer conn.Close()
	asleep, err := nfnl.IsDormant(conn, family, "kube-proxy")
	if err != nil {
		return false, err
	}
	for _, proto := range []iptables.Proto{iptables.UDP, iptables.TCP} {
		if asleep {
			break
		}
		if found, err := leads(conn, family, service, proto); found || err != nil {
			return found, err
		}
	}
	return mentions(conn, unix.NFT_MSG_GETRULE, family, a,
		"nat", named(unix.NFTA_RULE_CHAIN, "KUBE-SERVICES"))
}

// leads looks up one element of the map service-ips.
func leads(conn *netlink.Conn, family nftables.TableFamily, service netip.AddrPort, proto iptables.Proto) (bool, error) {
	// address . protocol . port, each padded to 32 bits
	key := append(service.Addr().AsSlice(), byte(proto), 0, 0, 0)
	key = append(binary.BigEndian.AppendUint16(key, service.Port()), 0, 0)
	nested := func(attr uint16, inner []byte) []byte {
		b, _ := netlink.MarshalAttributes([]netlink.Attribute{{Type: attr | netlink.Nested, Data: inner}})
		return b
	}
	value, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_DATA_VALUE, Data: key}})
	if err != nil {
		return false, err
	}
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		named(unix.NFTA_SET_ELEM_LIST_TABLE, "kube-proxy"), named(unix.NFTA_SET_ELEM_LIST_SET, "service-ips"),
		{Type: unix.NFTA_SET_ELEM_LIST_ELEMENTS | netlink.Nested, Data: nested(unix.NFTA_LIST_ELEM, nested(unix.NFTA_SET_ELEM_KEY, value))},
	})
	if err != nil {
		return false, err
	}
	_, err = conn.Execute(netlink.Message{
		Header: netlink.Header{Type: nfnl.MessageType(unix.NFT_MSG_GETSETELEM), Flags: netlink.Request},
		Data:   append(nfnl.Header(family, 0), attrs...),
	})
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENOENT):
		return false, nil
	}
	return false, nfnl.Explain("look for "+service.String()+" in kube-proxy's rules", err)
}

// mentions reports whether a dump of elements or rules has the address as a
// value. It looks for the attribute in the messages, since decoders give up on
// the extensions that iptables-nft puts into its rules. What is not there, or in a
// dormant table, mentions nothing.
func mentions(conn *netlink.Conn, msg int, family nftables.TableFamily, a netip.Addr, table string, in netlink.Attribute) (bool, error) {
	if asleep, err := nfnl.IsDormant(conn, family, table); asleep || err != nil {
		return false, err
	}
	value, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_DATA_VALUE, Data: a.AsSlice()}})
	if err != nil {
		return false, err
	}
	found := false
	err = nfnl.Each(conn, msg, family, func(data []byte) bool {
		found = bytes.Contains(data, value)
		return !found
	}, named(unix.NFTA_RULE_TABLE, table), in) // the same number for rules and for elements
	return found && err == nil, nfnl.Explain("look for "+a.String()+" in kube-proxy's rules", err)
}
