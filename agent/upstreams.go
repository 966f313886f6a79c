package agent

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/trackless-dns/trackless/internal/logger"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/nftables"
)

// upstreams are the servers that we ask untracked.
type upstreams struct {
	log logger.Logger

	mu      sync.Mutex
	wanted  map[any][]netip.AddrPort
	on      bool // the Corefile in force has a notrack block that untracks
	set     []iptables.Endpoint
	table   nftables.Upstreams
	refused string // logged last
}

// follow starts or stops untracking. nil means that no load is in force.
func (u *upstreams) follow(load *Load) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.on = load != nil && !load.Plan.DryRun
	u.apply()
}

// apply writes the wanted servers into the table. The lock is held.
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
			u.log.Warningf("queries to upstreams stay tracked: %v", err)
		}
		return
	}
	u.set, u.refused = want, ""
}

// Untrack keeps queries to the servers, and the answers, out of the conntrack table while
// a Corefile with notrack is in force. Each owner has its own servers; an empty list
// removes them. Queries under way stay as they are.
func (p *Agent) Untrack(owner any, servers []netip.AddrPort) {
	u := &p.upstreams
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
