package notrack

import (
	"net/netip"
	"slices"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin/forward"

	"github.com/trackless-dns/trackless/agent/health"
)

// forwarder is a handler that knows which Service addresses it asks. The second
// result is false if it asks none; without addresses it knows none.
type forwarder interface {
	Services() (addrs []netip.AddrPort, asks bool)
}

// serverBlock is one whose upstreams are followed.
type serverBlock struct{ *dnsserver.Config }

// Upstreams implements [health.Block].
func (b serverBlock) Upstreams() []health.Group {
	block := b.Config
	var out []health.Group
	if f, ok := block.Handler("upstream").(forwarder); ok {
		if addrs, asks := f.Services(); asks {
			out = append(out, health.Group{Addrs: addrs, Service: true})
		}
	}
	next := block.Handler("forward")
	for {
		f, ok := next.(*forward.Forward)
		if !ok {
			return out
		}
		var g health.Group
		for _, p := range f.List() {
			// Another transport has a scheme, and a name is no Service address.
			if ap, err := netip.ParseAddrPort(p.Addr()); err == nil {
				g.Addrs = append(g.Addrs, ap)
			}
		}
		if len(g.Addrs) == f.Len() && f.Len() > 0 {
			slices.SortFunc(g.Addrs, netip.AddrPort.Compare)
			out = append(out, g)
		}
		next = f.Next
	}
}

// handledBlocks are the blocks with a handler of ours.
func (c *configuration) handledBlocks() []health.Block {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]health.Block, 0, len(c.handlers))
	for block := range c.handlers {
		out = append(out, serverBlock{block})
	}
	return out
}

// health is what the upstreams are followed by.
func (c *configuration) health(instead func(netip.Addr) netip.Addr) *health.Config {
	return &health.Config{Blocks: c.handledBlocks, Listen: c.plan.Listen, DryRun: c.plan.DryRun, Instead: instead}
}
