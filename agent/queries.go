package agent

import (
	"net/netip"

	"github.com/trackless-dns/trackless/agent/admission"
	"github.com/trackless-dns/trackless/iptables"
)

// watchQueries has the agent do what the bounds of queries ask for.
func (p *Agent) watchQueries() {
	p.Queries.Slow = p.Health.Slow
	p.guard.Reset = p.Queries.Closed
	p.Queries.Crowded = func() {
		if k := p.reconciler.Load(); k != nil {
			k.Crowded()
		}
	}
	p.Queries.Overflow = p.lost.Count
	p.Queries.Thin = func(from []netip.Addr, pass float64) {
		var listen []iptables.Endpoint // none after the last load: its listeners may stay
		if load := p.serving.Load(); load != nil {
			listen = load.Plan.Listen
		}
		if err := p.udp.Thin(listen, from, pass); err != nil {
			p.log.Debugf("a client that floods takes room in the buffers of others: %v", err)
		}
	}
	p.Queries.Late = func(late bool) {
		if load := p.serving.Load(); load != nil {
			p.udp.Shorten(load.Plan.Listen, late)
		}
	}
}

// MakeRoom gives the UDP listeners of this process at the endpoints room for queries: see
// [sockets.UDPListeners.ForQueries].
func (p *Agent) MakeRoom(listen []iptables.Endpoint) error { return p.udp.ForQueries(listen) }

// Guard bounds the TCP connections of each client at the listeners of this process at the
// endpoints, until the last load with notrack ends.
func (p *Agent) Guard(listen []iptables.Endpoint) error {
	p.guardLimits.Do(func() { p.guard.PerClient, p.guard.All = admission.ConnectionLimits() })
	return p.guard.Follow(listen)
}
