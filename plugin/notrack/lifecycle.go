package notrack

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"

	"github.com/trackless-dns/trackless/agent"
	"github.com/trackless-dns/trackless/agent/health"
	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/plugin/notrack/corefile"
)

// start runs before the listeners of a newly loaded Corefile are opened.
func (c *configuration) start() error {
	c.load = &agent.Load{
		Plan: c.plan, Backend: c.backend, Failover: c.failover, Sync: c.sync, Keep: c.keep,
		Zones: c.zones, Identity: c.identity, Sockets: c.sockets, Idle: c.idle,
		Corefile: loadedCorefile(), Server: server{c},
	}
	followWaits(c, &c.agent.Queries)
	return c.agent.Start(c.load)
}

// restartFailed runs on the configuration that stays in force.
func (c *configuration) restartFailed() error {
	c.leaving.Store(false)
	return c.agent.RestartFailed(c.load)
}

// server is CoreDNS as a configuration has set it up.
type server struct{ config *configuration }

// Forwards implements [agent.Server].
func (s server) Forwards() []netip.AddrPort { return forwardEndpoints(s.config) }

// Blocks implements [agent.Server].
func (s server) Blocks() []health.Block { return s.config.handledBlocks() }

// Ask implements [agent.Server].
func (s server) Ask(ctx context.Context) error { return s.config.askInside(ctx) }

// Running implements [agent.Server].
func (s server) Running() bool {
	return slices.ContainsFunc(caddy.Instances(), func(i *caddy.Instance) bool {
		i.StorageMu.RLock()
		defer i.StorageMu.RUnlock()
		return i.Storage[configurationKey{}] == s.config
	})
}

// Stop implements [agent.Server].
func (s server) Stop() {
	stopAll(s.config.askedServers())
	for _, i := range slices.Clone(caddy.Instances()) {
		if err := i.Stop(); err != nil {
			log.Errorf("stop: %v", err)
		}
	}
}

// Error implements [agent.Server].
func (s server) Error(err error) error {
	return fmt.Errorf("plugin/%s: Corefile line %d: %w", directive, s.config.line, err)
}

// stopper is a server as a stop sees it.
type stopper interface{ Stop() error }

// stopAll stops servers at once. caddy does so one after the other, and each whose
// queries hang takes 5 s: together longer than kubelet waits for a container. Their
// errors come up again when caddy stops them.
func stopAll(servers []stopper) {
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(func() { _ = s.Stop() })
	}
	wg.Wait()
}

// loadedCorefile returns the Corefile that caddy is starting or has started last.
// Only caddy's own callbacks may ask: it changes its list without a lock.
func loadedCorefile() control.Corefile {
	for _, instance := range slices.Backward(caddy.Instances()) {
		if in := instance.Caddyfile(); in != nil {
			return control.Corefile{Path: in.Path(), Contents: string(in.Body())}
		}
	}
	return control.Corefile{}
}

// listeners are the UDP sockets of the running servers, as a client of this
// node reaches them.
func listeners() []netip.AddrPort {
	var out []netip.AddrPort
	for _, i := range caddy.Instances() {
		for _, s := range i.Servers() {
			local, ok := s.LocalAddr().(*net.UDPAddr)
			if !ok {
				continue
			}
			ap := sockets.Unmap(local.AddrPort())
			switch ap.Addr() {
			case netip.IPv4Unspecified():
				ap = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), ap.Port())
			case netip.IPv6Unspecified():
				ap = netip.AddrPortFrom(netip.IPv6Loopback(), ap.Port())
			}
			if !slices.Contains(out, ap) {
				out = append(out, ap)
			}
		}
	}
	return out
}

// forwardEndpoints are the servers to which the notrack blocks of the running load
// forward, in the order of the Corefile: those of `forward`, and those that `upstream`
// falls back to.
func forwardEndpoints(config *configuration) []netip.AddrPort {
	var input caddy.Input
	for _, i := range caddy.Instances() {
		i.StorageMu.RLock()
		found := i.Storage[configurationKey{}] == config
		i.StorageMu.RUnlock()
		if found {
			input = i.Caddyfile()
		}
	}
	if input == nil {
		return nil
	}
	blocks, err := caddyfile.Parse(input.Path(), bytes.NewReader(input.Body()), nil)
	if err != nil {
		return nil // caddy has parsed it before
	}
	return corefile.Forwards(blocks, directive)
}
