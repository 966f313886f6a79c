package legacy

import (
	"net/netip"
	"slices"

	"github.com/trackless-dns/trackless/iptables"
)

// IsService reports whether kube-proxy's rules rewrite packets to the address:
// in iptables mode with the legacy binaries it stands in a rule of the chain
// KUBE-SERVICES of the table nat.
func IsService(cfg Config, a netip.Addr) (bool, error) {
	nat, found, err := Read(cfg, iptables.FamilyOf(a), "nat")
	if err != nil || !found {
		return false, err
	}
	services := nat.Chain("KUBE-SERVICES")
	return services != nil && slices.ContainsFunc(services.Rules, func(r Rule) bool { return r.Destination.IsAddr(a) }), nil
}
