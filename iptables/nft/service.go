package nft

import (
	"bytes"
	"errors"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// IsService reports whether kube-proxy's rules rewrite packets to the address:
// in nftables mode it stands in the set cluster-ips of the table kube-proxy, in
// iptables mode with the nft binaries in a rule of the chain KUBE-SERVICES.
// Rules of legacy iptables cannot be read over nftables.
func IsService(cfg Config, a netip.Addr) (bool, error) {
	family := nftables.TableFamilyIPv4
	if a.Is6() {
		family = nftables.TableFamilyIPv6
	}
	conn, err := nftables.New(nftables.WithNetNSFd(cfg.NetNS))
	if err != nil {
		return false, explain("open a netfilter netlink socket", err)
	}
	proxy := &nftables.Table{Name: "kube-proxy", Family: family}
	elements, err := conn.GetSetElements(&nftables.Set{Table: proxy, Name: "cluster-ips"})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return false, explain("read kube-proxy's ClusterIPs", err)
	}
	for _, e := range elements {
		if bytes.Equal(e.Key, a.AsSlice()) {
			return true, nil
		}
	}
	nat := &nftables.Table{Name: "nat", Family: family}
	rules, err := conn.GetRules(nat, &nftables.Chain{Name: "KUBE-SERVICES", Table: nat})
	if err != nil {
		return false, nil //nolint:nilerr // no such chain: the library wraps the errno away
	}
	for _, r := range rules {
		for _, e := range r.Exprs {
			if c, ok := e.(*expr.Cmp); ok && bytes.Equal(c.Data, a.AsSlice()) {
				return true, nil
			}
		}
	}
	return false, nil
}
