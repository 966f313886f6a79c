package lab

import "net/netip"

// Addresses of the lab's cluster. They are the customary ones, so that its
// output reads like that of a real node.
var (
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
