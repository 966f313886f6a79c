package names

import (
	"net"
	"net/netip"
)

// InterfaceAddresses returns the addresses in the calling thread's network namespace; none
// if they cannot be read.
func InterfaceAddresses() []netip.Addr {
	var out []netip.Addr
	list, _ := net.InterfaceAddrs()
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr())
		}
	}
	return out
}

// OfNode returns a node as the owner of these addresses. Its name may be empty.
func OfNode(name string) map[netip.Addr]Owner {
	out := map[netip.Addr]Owner{}
	for _, a := range InterfaceAddresses() {
		out[a] = Owner{Kind: Node, Name: name}
	}
	return out
}
