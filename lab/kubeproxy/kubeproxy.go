// Package kubeproxy writes the Service rules of kube-proxy in nftables mode.
package kubeproxy

import (
	"fmt"

	"github.com/google/nftables"

	"github.com/trackless-dns/trackless/lab/internal/privilege"
)

// tableName is the name of kube-proxy's own table, one in each family.
const tableName = "kube-proxy"

// A Proxy stands in for kube-proxy in nftables mode: it writes the tables
// that kube-proxy v1.37 writes for the same Services (verdict maps keyed by
// address, protocol and port, a chain for each Service port, masquerade of
// what comes from outside the pod network, rejects for Services without
// endpoints), over netlink and without the nft binary. Only what concerns node
// ports, load balancers and session affinity is empty or absent.
type Proxy struct {
	netNS int    // a file descriptor of the node's network namespace
	node  string // its name, for errors
	ipv6  bool
}

// New returns the kube-proxy of a node, whose network namespace is given as a file
// descriptor, which must stay open, and by a name for errors.
func New(netNS int, node string, ipv6 bool) *Proxy {
	return &Proxy{netNS: netNS, node: node, ipv6: ipv6}
}

// Apply replaces the rules by those for the given Services, in one
// transaction: there is no moment without rules.
func (p *Proxy) Apply(services ...Service) error {
	conn, err := nftables.New(nftables.WithNetNSFd(p.netNS))
	if err != nil {
		return fmt.Errorf("open nftables in %s: %w", p.node, err)
	}
	for _, family := range p.families() {
		ruleset := &proxyRuleset{conn: conn, family: family, services: services}
		if err := ruleset.queue(); err != nil {
			return fmt.Errorf("describe kube-proxy's rules: %w", err)
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("install kube-proxy's rules in %s (does this kernel have nf_tables with nat, masq and reject?): %w",
			p.node, privilege.Explain(err))
	}
	return nil
}

// Remove deletes the tables, as `kube-proxy --cleanup` does. Connection
// tracking entries stay.
func (p *Proxy) Remove() error {
	conn, err := nftables.New(nftables.WithNetNSFd(p.netNS))
	if err != nil {
		return fmt.Errorf("open nftables in %s: %w", p.node, err)
	}
	for _, family := range p.families() {
		conn.DelTable(&nftables.Table{Name: tableName, Family: family.table})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("remove kube-proxy's tables from %s: %w", p.node, privilege.Explain(err))
	}
	return nil
}

func (p *Proxy) families() []proxyFamily {
	if p.ipv6 {
		return []proxyFamily{proxyIPv4, proxyIPv6}
	}
	return []proxyFamily{proxyIPv4}
}
