package kubeproxy

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// ServiceAddresses returns the ClusterIPs of a Service, named NAMESPACE/NAME, from
// kube-proxy's rules, with the UDP port; IPv4 first. It returns none if there is no
// such Service, if it has no endpoints, or if the rules are those of legacy iptables,
// which cannot be read over nftables.
//
// In nftables mode the map service-ips leads to chains named after the Service;
// in iptables mode rules of KUBE-SERVICES have the
// comment "NAMESPACE/NAME:PORT cluster IP" (pkg/proxy/nftables/proxier.go and
// pkg/proxy/iptables/proxier.go in kubernetes).
func ServiceAddresses(cfg Config, service string) ([]netip.AddrPort, error) {
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var out []netip.AddrPort
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		found, err := unlessDormant(conn, family, "kube-proxy", service, serviceIPs)
		if err == nil && len(found) == 0 {
			found, err = unlessDormant(conn, family, "nat", service, serviceRules)
		}
		if err != nil {
			return nil, nfnl.Explain("read the addresses of "+service+" from kube-proxy's rules", err)
		}
		slices.SortFunc(found, netip.AddrPort.Compare)
		out = append(out, slices.Compact(found)...)
	}
	return out, nil
}

// unlessDormant reads a table unless it is dormant: packets do not pass it then.
func unlessDormant(conn *netlink.Conn, family nftables.TableFamily, table, service string,
	read func(*netlink.Conn, nftables.TableFamily, string) ([]netip.AddrPort, error),
) ([]netip.AddrPort, error) {
	if dormant, err := nfnl.IsDormant(conn, family, table); dormant || err != nil {
		return nil, err
	}
	return read(conn, family, service)
}

// serviceIPs reads kube-proxy's table of nftables mode.
func serviceIPs(conn *netlink.Conn, family nftables.TableFamily, service string) ([]netip.AddrPort, error) {
	elements, err := nfnl.Elements(conn, family, "kube-proxy", "service-ips", func(e nfnl.Element) bool {
		return e.Verdict != nil && isChainOf(e.Verdict.Chain, service)
	})
	var out []netip.AddrPort
	for _, e := range elements {
		if ap, ok := serviceIP(e); ok {
			out = append(out, ap)
		}
	}
	return out, err
}

// serviceIP returns the address and port of an element of service-ips.
func serviceIP(e nfnl.Element) (netip.AddrPort, bool) {
	// address . protocol . port, each padded to 32 bits
	n := len(e.Key) - 8
	if n < 4 {
		return netip.AddrPort{}, false
	}
	a, ok := netip.AddrFromSlice(e.Key[:n])
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(e.Key[n+4:])), ok
}

// isChainOf reports whether a chain is for a UDP port of the Service:
// service-HASH-NAMESPACE/NAME/udp/PORT.
func isChainOf(chain, service string) bool {
	rest, _ := strings.CutPrefix(chain, "service-")
	_, rest, _ = strings.Cut(rest, "-")
	return strings.HasPrefix(rest, service+"/udp/")
}

// clusterIPComment is the end of the comments of rules for ClusterIPs.
const clusterIPComment = " cluster IP"

// serviceRules reads the rules of iptables mode.
func serviceRules(conn *netlink.Conn, family nftables.TableFamily, service string) ([]netip.AddrPort, error) {
	const dns = 53
	rules, err := nfnl.Rules(conn, family, "nat", "KUBE-SERVICES", func(r nfnl.Rule) bool {
		return strings.HasPrefix(r.Comment, service+":") && strings.HasSuffix(r.Comment, clusterIPComment)
	})
	var out []netip.AddrPort
	for _, r := range rules {
		if a, ok := destination(r, family); ok {
			out = append(out, netip.AddrPortFrom(a, dns))
		}
	}
	return out, err
}

// destination returns the address with which a rule of KUBE-SERVICES compares the
// destination.
func destination(r nfnl.Rule, family nftables.TableFamily) (netip.Addr, bool) {
	for _, e := range r.Exprs {
		// Only the comparison of the destination has the length of an address.
		if e.Name != "cmp" {
			continue
		}
		a, ok := netip.AddrFromSlice(e.Value(unix.NFTA_CMP_DATA))
		if ok && (family == nftables.TableFamilyIPv4) == a.Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}
