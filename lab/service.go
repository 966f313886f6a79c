package lab

import "net/netip"

// Addresses of the lab's cluster. They are the customary ones, so that its
// output reads like that of a real node.
var (
	podCIDR4 = netip.MustParsePrefix("10.244.0.0/16")
	podCIDR6 = netip.MustParsePrefix("fd00:244::/64")

	serviceCIDR4 = netip.MustParsePrefix("10.96.0.0/16")
	serviceCIDR6 = netip.MustParsePrefix("fd00:10:96::/112")

	// ClusterDNS4 and ClusterDNS6 are the addresses of the Service kube-dns,
	// which pods ask and a node-local cache takes over.
	ClusterDNS4 = netip.MustParseAddr("10.96.0.10")
	ClusterDNS6 = netip.MustParseAddr("fd00:10:96::a")

	// UpstreamDNS4 and UpstreamDNS6 are those of the Service kube-dns-upstream,
	// which has the same endpoints and which the cache asks.
	UpstreamDNS4 = netip.MustParseAddr("10.96.0.99")
	UpstreamDNS6 = netip.MustParseAddr("fd00:10:96::63")

	// LinkLocalDNS4 is the link-local address that NodeLocal DNSCache uses by
	// default. No Service owns it.
	LinkLocalDNS4 = netip.MustParseAddr("169.254.20.10")
)

// A Service is a Kubernetes Service for DNS: port 53, UDP and TCP.
type Service struct {
	// Name is namespace/name.
	Name string

	// ClusterIPs are the addresses, at most one of each family.
	ClusterIPs []netip.Addr

	// Endpoints are the pods behind it, at most one of each family. A family
	// without an endpoint is rejected, as kube-proxy does.
	Endpoints []netip.Addr
}

// address returns the one of addrs that is of the family, or the zero Addr.
func address(addrs []netip.Addr, ipv6 bool) netip.Addr {
	for _, addr := range addrs {
		if addr.Is6() == ipv6 {
			return addr
		}
	}
	return netip.Addr{}
}
