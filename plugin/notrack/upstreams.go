package notrack

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/nftables"
)

// upstreams are the servers to which queries of ours are not tracked either.
type upstreams struct {
	mu      sync.Mutex
	wanted  map[any][]netip.AddrPort
	on      bool // the Corefile in force has a notrack block that untracks
	set     []iptables.Endpoint
	table   nftables.Upstreams
	refused string // said last
}

// Untrack keeps queries to the servers, and the answers, out of the conntrack
// table for as long as a Corefile with notrack is in force; none ends that. Each
// owner has its own servers. What is already under way stays as it is.
//
// The servers must be asked directly: a ClusterIP that is untracked is answered
// by nobody.
func Untrack(owner any, servers []netip.AddrPort) {
	u := &process.upstreams
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.wanted == nil {
		u.wanted = map[any][]netip.AddrPort{}
	}
	u.wanted[owner] = slices.Clone(servers)
	if len(servers) == 0 {
		delete(u.wanted, owner)
	}
	u.apply()
}

// follow begins or ends untracking with the configuration that is in force.
func (u *upstreams) follow(config *configuration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.on = config != nil && !config.plan.DryRun
	u.apply()
}

// apply makes the table what is wanted. The lock is held.
func (u *upstreams) apply() {
	var want []iptables.Endpoint
	if u.on {
		for _, servers := range u.wanted {
			for _, s := range servers {
				for _, proto := range []iptables.Proto{iptables.UDP, iptables.TCP} {
					want = append(want, iptables.Endpoint{Addr: s.Addr(), Port: s.Port(), Proto: proto})
				}
			}
		}
	}
	slices.SortFunc(want, iptables.Endpoint.Compare)
	want = slices.Compact(want)
	if slices.Equal(want, u.set) {
		return
	}
	if err := u.table.Set(want); err != nil {
		if err.Error() != u.refused {
			u.refused = err.Error()
			log.Warningf("queries to upstreams stay tracked: %v", err)
		}
		return
	}
	u.set, u.refused = want, ""
}
