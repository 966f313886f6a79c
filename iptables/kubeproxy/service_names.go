package kubeproxy

import (
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// ServiceNames returns the Services of kube-proxy's rules, named NAMESPACE/NAME, by their
// ClusterIPs. It reads what ServiceAddresses reads: Services with endpoints, and not the
// rules of legacy iptables.
func ServiceNames(cfg Config) (map[netip.Addr]string, error) {
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	names := map[netip.Addr]string{}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		for table, read := range map[string]func() error{
			"kube-proxy": func() error { return chainNames(conn, family, names) },
			"nat":        func() error { return commentNames(conn, family, names) },
		} {
			dormant, err := nfnl.IsDormant(conn, family, table)
			if err == nil && !dormant {
				err = read()
			}
			if err != nil {
				return nil, nfnl.Explain("read the names of Services from kube-proxy's rules", err)
			}
		}
	}
	return names, nil
}

// chainNames reads names from nftables mode.
func chainNames(conn *netlink.Conn, family nftables.TableFamily, names map[netip.Addr]string) error {
	_, err := nfnl.Elements(conn, family, "kube-proxy", "service-ips", func(e nfnl.Element) bool {
		ap, ok := serviceIP(e)
		if ok && e.Verdict != nil {
			if name := nameOfChain(e.Verdict.Chain); name != "" {
				names[ap.Addr()] = name
			}
		}
		return false
	})
	return err
}

// nameOfChain returns the Service of a chain: service-HASH-NAMESPACE/NAME/PROTOCOL/PORT.
// External addresses lead to chains of other names.
func nameOfChain(chain string) string {
	rest, ok := strings.CutPrefix(chain, "service-")
	_, rest, hashed := strings.Cut(rest, "-")
	parts := strings.Split(rest, "/")
	if !ok || !hashed || len(parts) < 3 {
		return ""
	}
	return parts[0] + "/" + parts[1]
}

// commentNames reads names from iptables mode.
func commentNames(conn *netlink.Conn, family nftables.TableFamily, names map[netip.Addr]string) error {
	_, err := nfnl.Rules(conn, family, "nat", "KUBE-SERVICES", func(r nfnl.Rule) bool {
		name, ok := strings.CutSuffix(r.Comment, clusterIPComment)
		if a, has := destination(r, family); ok && has {
			name, _, _ = strings.Cut(name, ":") // a Service of one port may have no name for it
			names[a] = name
		}
		return false
	})
	return err
}
