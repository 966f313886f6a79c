package agent

import (
	"errors"
	"net/netip"

	"github.com/trackless-dns/trackless/agent/ruleset"
	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/iptables"
)

// adopter returns what takes over from a predecessor when this instance attaches, and at every
// sync.
func (p *Agent) adopter() func([]netip.Addr) (bool, error) {
	a := ruleset.Adopter{Log: p.log, Count: p.config.CountSetupError}
	return func(addrs []netip.Addr) (bool, error) {
		if load := p.serving.Load(); load != nil {
			p.steering.Look(load.Plan.Listen)
		}
		return a.Adopt(addrs)
	}
}

// serves returns a function that tells whether queries to an address are untracked now by
// this instance, and by others. What cannot be read is taken for others that serve.
func (p *Agent) serves() func(netip.Addr) (ours, others bool) {
	claims, err := ruleset.Claims()
	if err != nil {
		p.log.Debugf("other instances cannot be read: %v", err)
	}
	return func(a netip.Addr) (ours, others bool) { return p.Covers(a), err != nil || claims.Live(a) }
}

// OthersServe reports whether another instance has queries to the address untracked now.
func (p *Agent) OthersServe(a netip.Addr) bool {
	_, others := p.serves()(a)
	return others
}

func (p *Agent) hasFastSockets(at netip.AddrPort) bool {
	return p.FastPathSockets != nil && p.FastPathSockets(at)
}

// yield leaves what comes from now on to the sockets of another instance.
func (p *Agent) yield(listen []iptables.Endpoint) error {
	return errors.Join(sockets.LeaveToOthers(listen), p.steering.Leave())
}
