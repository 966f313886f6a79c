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
	"github.com/coredns/coredns/plugin"

	"github.com/trackless-dns/trackless/iptables"
)

// NoTrack is the handler of one server block. It answers this process's own
// checks and tells the ledger about everything else.
type NoTrack struct {
	Next plugin.Handler

	config *configuration
}

// Name implements plugin.Handler.
func (*NoTrack) Name() string { return directive }

const directive = "notrack"

// block is what one notrack block of the Corefile asks for.
type block struct {
	plan    iptables.Plan
	backend string
	line    int

	// zones has, for each listen endpoint that speaks plain DNS, a zone that
	// is served there; for the others, which are checked by connecting, "".
	zones map[iptables.Endpoint]string
}

// configuration is what all notrack blocks of one Corefile ask for together.
// Each load of a Corefile makes one.
type configuration struct {
	id      string // of this load: what checks ask for and only its handlers answer
	plan    iptables.Plan
	backend string
	link    string
	line    int // of the first block
	zones   map[iptables.Endpoint]string
}

// add merges a block, or says which line it conflicts with.
func (c *configuration) add(b block) error {
	if c.line == 0 {
		c.line, c.backend, c.link = b.line, b.backend, b.plan.Link
	}
	switch {
	case b.backend != c.backend:
		return conflict("backend", b.backend, c.backend, c.line)
	case b.plan.Link != c.link:
		return conflict("interface", interfaceName(b.plan.Link), interfaceName(c.link), c.line)
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
