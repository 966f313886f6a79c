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

// IsService reports whether kube-proxy's rules rewrite packets to the address. In
// nftables mode the address is in the set cluster-ips of the table kube-proxy. In
// iptables mode with the nft binaries it is in a rule of the chain KUBE-SERVICES.
func IsService(cfg Config, a netip.Addr) (bool, error) {
	family := nftables.TableFamilyIPv4
	if a.Is6() {
		family = nftables.TableFamilyIPv6
	}
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return false, err
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

// HasEndpoints reports whether a Service with endpoints has this address and port, over
// UDP or TCP. In nftables mode it looks the address up in the map service-ips, which
// has only Services with endpoints. In iptables mode with the nft binaries it reads the
// rules of KUBE-SERVICES in the table nat, which also are only for Services with
// endpoints (pkg/proxy/{nftables,iptables}/proxier.go in kubernetes).
func HasEndpoints(cfg Config, service netip.AddrPort) (bool, error) {
	a, family := service.Addr(), nftables.TableFamilyIPv4
	if a.Is6() {
		family = nftables.TableFamilyIPv6
	}
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	dormant, err := nfnl.IsDormant(conn, family, "kube-proxy")
	if err != nil {
		return false, err
	}
	for _, proto := range []iptables.Proto{iptables.UDP, iptables.TCP} {
		if dormant {
			break
		}
		if found, err := inServiceIPs(conn, family, service, proto); found || err != nil {
			return found, err
		}
	}
	return mentions(conn, unix.NFT_MSG_GETRULE, family, a,
		"nat", named(unix.NFTA_RULE_CHAIN, "KUBE-SERVICES"))
}

// inServiceIPs looks up one element of the map service-ips.
func inServiceIPs(conn *netlink.Conn, family nftables.TableFamily, service netip.AddrPort, proto iptables.Proto) (bool, error) {
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

// mentions reports whether a dump of elements or rules has the address as a value. It
// searches the messages for the attribute, since decoders fail on the extensions that
// iptables-nft puts into its rules. It returns false for a table that does not exist or
// is dormant.
func mentions(conn *netlink.Conn, msg int, family nftables.TableFamily, a netip.Addr, table string, in netlink.Attribute) (bool, error) {
	if dormant, err := nfnl.IsDormant(conn, family, table); dormant || err != nil {
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
