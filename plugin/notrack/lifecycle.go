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

// start runs before the listeners of a new Corefile open.
func (c *configuration) start() error {
	c.load = &agent.Load{
		Plan: c.plan, Backend: c.backend, Failover: c.failover, Sync: c.sync, Keep: c.keep, Warm: c.warm, Names: c.names,
		Zones: c.zones, Identity: c.identity, Sockets: c.sockets, Idle: c.idle,
		Corefile: loadedCorefile(), Server: server{c},
	}
	followWaits(c, c.agent.Queries)
	return c.agent.Start(c.load)
}

// restartFailed runs after a failed reload, for the configuration that stays in force.
func (c *configuration) restartFailed() error {
	c.leaving.Store(false)
	return c.agent.RestartFailed(c.load)
}

// server is CoreDNS with a configuration.
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

// stopper is a server that can be stopped.
type stopper interface{ Stop() error }

// stopAll stops all servers at the same time. caddy stops one after the other, and a
// server whose queries hang takes 5 s: together longer than kubelet waits for a container.
// Errors are dropped here; caddy returns them again when it stops the servers.
func stopAll(servers []stopper) {
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(func() { _ = s.Stop() })
	}
	wg.Wait()
}

// loadedCorefile is [corefile.Loaded] for the control socket.
func loadedCorefile() control.Corefile {
	path, contents := corefile.Loaded()
	return control.Corefile{Path: path, Contents: contents}
}

// listeners returns the UDP addresses of the running servers, as a client of this node
// reaches them.
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

// forwardEndpoints returns the upstreams of the notrack blocks of the running load, in the
// order of the Corefile: the servers of `forward`, and the fallbacks of `upstream`.
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
		return nil // cannot fail: caddy has parsed it
	}
	return corefile.Forwards(blocks, directive)
}
