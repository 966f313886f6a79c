package fairness

import (
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"

	"github.com/trackless-dns/trackless/plugin/notrack/corefile"
)

func init() {
	plugin.Register(directive, setup)
	Queries.Offenders.Name = lookUp
}

// NameBy sets what knows whose address it is: a pod, for instance. It returns "" where
// nobody knows.
func NameBy(by func(netip.Addr) string) { nameBy.Store(&by) }

var nameBy atomic.Pointer[func(netip.Addr) string]

// leastMost is the smallest number of misses that a Corefile may allow.
const leastMost = 16

func setup(c *caddy.Controller) error {
	g := GateOf(c)
	if err := parse(c, g); err != nil {
		return plugin.Error(directive, err)
	}
	if !g.owned {
		g.block.AddPlugin(func(next plugin.Handler) plugin.Handler { return &handler{Next: next, gate: g} })
	}
	return nil
}

// parse reads fairness [off] { max N }.
func parse(c *caddy.Controller, g *Gate) error {
	for first := true; c.Next(); first = false {
		if !first {
			return c.Err("a server block can have only one fairness directive; remove one of the two")
		}
		switch args := c.RemainingArgs(); {
		case len(args) == 1 && args[0] == "off":
			g.off = true
		case len(args) > 0:
			return c.Errf("%q is unknown; use `fairness`, `fairness off` or a block with `max N`", strings.Join(args, " "))
		}
		for c.NextBlock() {
			if err := parseOption(c, g); err != nil {
				return err
			}
		}
	}
	return nil
}

func parseOption(c *caddy.Controller, g *Gate) error {
	option, args := c.Val(), c.RemainingArgs()
	if option != "max" {
		return c.Errf("unknown option %q: use max", option)
	}
	if g.off {
		return c.Errf("%s has no effect with off; remove one of the two", option)
	}
	if len(args) != 1 {
		return c.Errf("%s takes one value, not %d", option, len(args))
	}
	n, err := strconv.Atoi(args[0])
	if err != nil || n < leastMost {
		return c.Errf("max %q: want a number of queries, at least %d", args[0], leastMost)
	}
	g.most = n
	return nil
}

// gatesKey is the key of the gates in caddy's storage of a load.
type gatesKey struct{}

// gates has the gate of each block of a load.
type gates map[*dnsserver.Config]*Gate

// GateOf returns the gate of a server block.
func GateOf(c *caddy.Controller) *Gate {
	all, ok := c.Get(gatesKey{}).(gates)
	if !ok {
		all = gates{}
		c.Set(gatesKey{}, all)
		most := 0
		c.OnStartup(func() error {
			most = all.most()
			Queries.AtMost(most)
			return nil
		})
		// A reload that failed may have set another number.
		c.OnRestartFailed(func() error {
			Queries.AtMost(most)
			return nil
		})
	}
	block := dnsserver.GetConfig(c)
	if all[block] == nil {
		all[block] = &Gate{block: block}
	}
	return all[block]
}

// Own returns the gate of a server block for a plugin whose handler below the cache calls it,
// and whose handler above the cache counts the queries over UDP ([admission.Queries.Take]).
func Own(c *caddy.Controller) *Gate {
	g := GateOf(c)
	g.owned = true
	return g
}

// most returns how many misses may be under way: no more than the Corefile says, and no more
// than the plugins that ask upstreams let pass, which would refuse the queries of all
// clients. 0 is no bound.
func (all gates) most() int {
	most := maxConcurrent()
	for _, g := range all {
		if g.most > 0 && (most == 0 || g.most < most) {
			most = g.most
		}
	}
	return most
}

// maxConcurrent returns the smallest max_concurrent of the Corefile, 0 without one.
func maxConcurrent() int {
	path, text := corefile.Loaded()
	blocks, err := caddyfile.Parse(path, strings.NewReader(text), nil)
	if err != nil {
		return 0 // cannot fail: caddy has parsed it
	}
	return corefile.MaxConcurrent(blocks)
}
