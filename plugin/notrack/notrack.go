// Package notrack keeps DNS to this node's listen addresses out of the kernel's
// connection tracking table.
//
// conntrack records a pod's query to the DNS Service, and kube-proxy rewrites it. On a busy
// node those entries fill the table, and lookups time out at random. This directive adds
// the block's listen addresses to the node and untracks packets to and from them in the
// raw hooks, only while this process answers: the rules are installed after the listeners
// open and removed before they close, and they end with the process. Without us the same
// packets reach the cluster's DNS.
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
	"github.com/trackless-dns/trackless/plugin/fairness"
)

// NoTrack is the handler of one server block. It answers checks of this process and records
// all other queries in the ledger.
type NoTrack struct {
	Next plugin.Handler

	config *configuration
	block  *dnsserver.Config
}

// Name implements plugin.Handler.
func (*NoTrack) Name() string { return directive }

const directive = "notrack"

// block has the settings of one notrack block.
type block struct {
	plan     iptables.Plan
	backend  ruleset.Choice
	failover string
	sync     time.Duration
	keep     bool
	warm     time.Duration
	names    string // the file of `warm`; "": none
	line     int

	// zones has a zone that is served at each listen endpoint for plain DNS. It has ""
	// for other endpoints: they are checked by connecting.
	zones map[iptables.Endpoint]string
}

// configuration merges all notrack blocks of one load of a Corefile. It has the settings of
// the first block, which the others must share, and the endpoints and zones of all.
type configuration struct {
	block

	agent    *agent.Agent
	identity *checks.Identity // of this load
	sockets  int              // listening sockets at each endpoint
	idle     time.Duration    // silent TCP connections are closed after it; the longest of all blocks
	gates    []gated          // of the blocks whose checkpoints are not placed yet
	context  caddy.Context
	first    *caddy.Controller // of the first block

	load    *agent.Load // set by start
	leaving atomic.Bool // a reload has begun
	servers sync.Map    // each serving that got a check

	mu       sync.Mutex
	handlers map[*dnsserver.Config]*NoTrack // one of each block
}

// gated is a block with the gate of its misses.
type gated struct {
	block *dnsserver.Config
	gate  *fairness.Gate
}

// addHandler stores a handler of a block. CoreDNS makes one for each listener.
func (c *configuration) addHandler(n *NoTrack) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.handlers == nil {
		c.handlers = map[*dnsserver.Config]*NoTrack{}
	}
	c.handlers[n.block] = n
}

// everyHandler returns one handler of each block.
func (c *configuration) everyHandler() []*NoTrack {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.handlers))
}

// askedServers returns the servers that got a check: those for plain DNS. CoreDNS passes
// its servers only to handlers.
func (c *configuration) askedServers() []stopper {
	asked := map[stopper]bool{} // each over both protocols
	c.servers.Range(func(s, _ any) bool {
		asked[s.(serving).server] = true
		return true
	})
	return slices.Collect(maps.Keys(asked))
}

// add merges a block. The error has the line of a block that conflicts with it.
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
		{"warm", warmText(c.block), warmText(b)},
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
