package notrack

import (
	"maps"
	"net/netip"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/predecessor"
)

// inTheWay adds to what the filter chains of others do to the addresses what a
// predecessor left and cannot be taken away: to say that queries can be given back
// would not be true.
func inTheWay(m *wayMaker) func(iptables.Rules) (map[netip.Addr]error, bool) {
	return func(r iptables.Rules) (map[netip.Addr]error, bool) {
		out := map[netip.Addr]error{}
		blocked, cleared := m.makeWay(r)
		maps.Copy(out, blocked)
		fixed, err := predecessor.FixedByNodeCache(predecessor.Config{}, r.Plan.Addresses())
		if err != nil {
			log.Debugf("what NodeLocal DNSCache left: %v", err)
		}
		maps.Copy(out, fixed)
		return out, cleared
	}
}
