package kubeproxy

import "net/netip"

// The networks of the cluster. They are the customary ones, so that the rules read
// like those of a real node.
var (
	podCIDR4 = netip.MustParsePrefix("10.244.0.0/16")
	podCIDR6 = netip.MustParsePrefix("fd00:244::/64")

	serviceCIDR4 = netip.MustParsePrefix("10.96.0.0/16")
	serviceCIDR6 = netip.MustParsePrefix("fd00:10:96::/112")
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

// Address returns the one of addrs that is of the family, or the zero Addr.
func Address(addrs []netip.Addr, ipv6 bool) netip.Addr {
	for _, addr := range addrs {
		if addr.Is6() == ipv6 {
			return addr
		}
	}
	return netip.Addr{}
}
