package notrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/forward"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/agent/checks"
	"github.com/trackless-dns/trackless/agent/health"
	"github.com/trackless-dns/trackless/agent/recorder"
)

// forwarder is a handler that asks Services. Services returns their known addresses, and
// whether the handler asks Services at all.
type forwarder interface {
	Services() (addrs []netip.AddrPort, asks bool)
}

// serverBlock is a server block with notrack.
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
			// Addresses of other transports have a scheme. They are no Service addresses.
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

// Label implements [health.Block].
func (b serverBlock) Label() string {
	return fmt.Sprintf("%s://%s:%s %v %s", b.Transport, b.Zone, b.Port, b.ListenHosts, b.ViewName)
}

// Pass implements [health.Block].
func (b serverBlock) Pass(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	p, ok := b.Handler((*checkpoint)(nil).Name()).(*checkpoint)
	if !ok {
		return dns.RcodeServerFailure, plugin.Error(directive, errors.New("the server block has not started"))
	}
	return plugin.NextOrFailure(directive, p.Next, ctx, w, r)
}

// handledBlocks returns the blocks with a handler of ours.
func (c *configuration) handledBlocks() []health.Block {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]health.Block, 0, len(c.handlers))
	for block := range c.handlers {
		out = append(out, serverBlock{block})
	}
	return out
}

// askInside sends a check to the handler of every block, and verifies the answers.
func (c *configuration) askInside(ctx context.Context) error {
	c.mu.Lock()
	handlers := make([]*NoTrack, 0, len(c.handlers))
	for _, n := range c.handlers {
		handlers = append(handlers, n)
	}
	c.mu.Unlock()
	for _, n := range handlers {
		query := c.identity.Query(checks.CheckLabel, ".")
		w := &recorder.Recorder{}
		if _, err := n.answerProbe(ctx, w, query, checks.Probe{Check: true, Own: true}); err != nil {
			return fmt.Errorf("server block %s: %w", n.block.Zone, err)
		}
		if w.Answer == nil {
			return fmt.Errorf("server block %s: no answer to a check", n.block.Zone)
		}
		if _, err := c.identity.AnsweredBy(query, w.Answer); err != nil {
			return fmt.Errorf("server block %s: %w", n.block.Zone, err)
		}
	}
	return nil
}
