// Package notrack keeps DNS to this node's listen addresses out of the kernel's
// connection tracking table.
//
// A pod's query to the DNS Service is recorded by conntrack and rewritten by
// kube-proxy; on a busy node those entries fill the table, and lookups time out
// at random. This directive puts the block's listen addresses on the node and
// untracks packets to and from them in the raw hooks. It does so only while
// this process answers: the rules come after the listeners, go before them, and
// die with the process, so that without us the same packets reach the cluster's
// DNS.
package notrack

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"

	"github.com/trackless-dns/trackless/agent"
	"github.com/trackless-dns/trackless/agent/checks"
	"github.com/trackless-dns/trackless/agent/ruleset"
	"github.com/trackless-dns/trackless/iptables"
)

// NoTrack is the handler of one server block. It answers this process's own
// checks and tells the ledger about everything else.
type NoTrack struct {
	Next plugin.Handler

	config *configuration
	block  *dnsserver.Config
}

// Name implements plugin.Handler.
func (*NoTrack) Name() string { return directive }

const directive = "notrack"

// block is what one notrack block of the Corefile asks for.
type block struct {
	plan     iptables.Plan
	backend  ruleset.Choice
	failover string
	sync     time.Duration
	keep     bool
	line     int

	// zones has, for each listen endpoint that speaks plain DNS, a zone that
	// is served there; for the others, which are checked by connecting, "".
	zones map[iptables.Endpoint]string
}

// configuration is what all notrack blocks of one Corefile ask for together.
// Each load of a Corefile makes one. Its settings are those of the first block,
// which the others must share; endpoints and zones are those of all.
type configuration struct {
	block

	agent    *agent.Agent
	identity *checks.Identity // of this load
	sockets  int              // listening sockets at each endpoint
	idle     time.Duration    // for which silent TCP connections are kept, the longest of all blocks
	blocks   []*dnsserver.Config
	context  caddy.Context

	load    *agent.Load // set when it starts
	leaving atomic.Bool // another load is about to take over
	servers sync.Map    // the *dnsserver.Server that checks have come to

	mu       sync.Mutex
	handlers map[*dnsserver.Config]*NoTrack // one of each block
}

// made remembers a handler of a block. CoreDNS makes one for each listener.
func (c *configuration) made(n *NoTrack) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.handlers == nil {
		c.handlers = map[*dnsserver.Config]*NoTrack{}
	}
	c.handlers[n.block] = n
}

// everyHandler is one handler of each block.
func (c *configuration) everyHandler() []*NoTrack {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.handlers))
}

// askedServers are the servers that checks have come to: those of plain DNS.
// CoreDNS hands nobody its servers but handlers.
func (c *configuration) askedServers() []stopper {
	var out []stopper
	c.servers.Range(func(s, _ any) bool {
		out = append(out, s.(stopper))
		return true
	})
	return out
}

// add merges a block, or says which line it conflicts with.
func (c *configuration) add(b block) error {
	if c.line == 0 {
		zones := c.zones
		c.block = b
		c.zones = zones
		maps.Copy(c.zones, b.zones)
		return nil
	}
	for _, setting := range []struct{ name, ours, theirs string }{
		{"backend", c.backend.String(), b.backend.String()},
		{"interface", interfaceName(c.plan.Link), interfaceName(b.plan.Link)},
		{"lease", c.plan.Lease.String(), b.plan.Lease.String()},
		{"failover", c.failover, b.failover},
		{"sync", c.sync.String(), b.sync.String()},
		{"sources", sources(c.plan), sources(b.plan)},
		{"uplinks", strings.Join(c.plan.Uplinks, " "), strings.Join(b.plan.Uplinks, " ")},
		{"dry-run", strconv.FormatBool(c.plan.DryRun), strconv.FormatBool(b.plan.DryRun)},
		{"keep", strconv.FormatBool(c.keep), strconv.FormatBool(b.keep)},
	} {
		if setting.ours != setting.theirs {
			return conflict(setting.name, setting.theirs, setting.ours, c.line)
		}
	}
	merged, err := c.plan.Merge(b.plan)
	if err != nil {
		return err
	}
	c.plan = merged
	for e, zone := range b.zones {
		if c.zones[e] == "" {
			c.zones[e] = zone
		}
	}
	return nil
}

func sources(p iptables.Plan) string {
	switch {
	case p.AnySource:
		return "any"
	case len(p.Sources) == 0:
		return "local"
	}
	words := make([]string, 0, len(p.Sources))
	for _, s := range p.Sources {
		words = append(words, s.String())
	}
	return strings.Join(words, " ")
}
