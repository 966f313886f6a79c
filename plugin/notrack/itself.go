package notrack

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	"github.com/coredns/coredns/core/dnsserver"

	"github.com/trackless-dns/trackless/internal/sockets"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/plugin/notrack/corefile"
)

// A block that forwards to its own address answers no miss: each one comes back to it. The
// plugin loop finds all loops, but later and by a query. Here we find those that the
// Corefile shows.

// refuseItself returns an error for a block that would ask itself.
func refuseItself(c *caddy.Controller, b block) error {
	loaded := loadedCorefile()
	blocks, err := caddyfile.Parse(loaded.Path, strings.NewReader(loaded.Contents), nil)
	if err != nil {
		return err
	}
	if c.ServerBlockIndex >= len(blocks) {
		return nil // no Corefile is loaded
	}
	everywhere := slices.ContainsFunc(dnsserver.GetConfig(c).ListenHosts, isWildcard)
	for _, t := range corefile.Targets(blocks[c.ServerBlockIndex].Tokens) {
		if !listensAt(b.plan.Listen, everywhere, t.Server) {
			continue
		}
		return fmt.Errorf("%s:%d: %s: this server block itself listens on %s, so every miss would come back to it; use the address of another server, for kube-dns that of a Service which is no listen address (kube-dns-upstream)",
			path.Base(loaded.Path), t.Line, t.Words, t.Server)
	}
	return nil
}

// listensAt reports whether a query to the server comes back. A socket for all addresses
// gets queries to any address of this node at which no other process listens.
func listensAt(listen []iptables.Endpoint, everywhere bool, server netip.AddrPort) bool {
	at := func(e iptables.Endpoint) bool { return e.AddrPort() == server }
	if slices.ContainsFunc(listen, at) {
		return true
	}
	port := func(e iptables.Endpoint) bool { return e.Port == server.Port() }
	return everywhere && slices.ContainsFunc(listen, port) && isLocal(server.Addr()) && !sockets.HasListener("/proc/thread-self", server)
}

func isWildcard(listen string) bool {
	a, err := netip.ParseAddr(listen)
	return listen == "" || err == nil && a.IsUnspecified()
}

// isLocal reports whether this node has the address.
func isLocal(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(addrs, func(have net.Addr) bool {
		p, err := netip.ParsePrefix(have.String())
		return err == nil && p.Addr() == a
	})
}
