package agent

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/trackless-dns/trackless/agent/checks"
	"github.com/trackless-dns/trackless/agent/health"
	"github.com/trackless-dns/trackless/agent/ruleset"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/control"
)

// Load is one load of a Corefile. The agent adapts Plan to what the kernel can do.
type Load struct {
	Plan     iptables.Plan
	Backend  ruleset.Choice
	Failover string // an address, [services.FailoverAuto] or [services.FailoverOff]
	Sync     time.Duration
	Keep     bool
	Warm     time.Duration // how long the start may wait for the state of another instance; 0: not at all
	Names    string        // the file of the names that are asked most; "": none

	// Zones has a zone that is served at each listen endpoint for plain DNS. It has ""
	// for other endpoints: they are checked by connecting.
	Zones    map[iptables.Endpoint]string
	Identity *checks.Identity
	Sockets  int           // listening sockets at each endpoint
	Idle     time.Duration // silent TCP connections are closed after it
	Corefile control.Corefile

	Server Server
}

// Server is the DNS server of one load.
type Server interface {
	// Forwards returns the upstreams of its blocks with notrack, in the order of the
	// Corefile.
	Forwards() []netip.AddrPort
	// Blocks returns its blocks with notrack.
	Blocks() []health.Block
	// Ask sends a check to every block, inside the process.
	Ask(context.Context) error
	// Running reports whether the load is in force.
	Running() bool
	// Stop stops all servers of the process.
	Stop()
	// Error adds the directive and its line in the Corefile to an error.
	Error(error) error
}

// forwardTargets returns the upstreams of the notrack blocks, in the order of the
// Corefile: those of `forward`, and the fallbacks of `upstream`.
func (l *Load) forwardTargets() []netip.Addr {
	var out []netip.Addr
	for _, ap := range l.Server.Forwards() {
		if !slices.Contains(out, ap.Addr()) {
			out = append(out, ap.Addr())
		}
	}
	return out
}

// plain returns the endpoints for plain DNS over UDP.
func (l *Load) plain() []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range l.Plan.Listen {
		if e.Proto == iptables.UDP && l.Zones[e] != "" {
			out = append(out, e.AddrPort())
		}
	}
	return out
}
