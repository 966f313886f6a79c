package notrack

import (
	"cmp"
	"sync/atomic"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"

	"github.com/trackless-dns/trackless/agent/checks"
	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/plugin/fairness"
	"github.com/trackless-dns/trackless/plugin/querymetrics"
)

func init() { plugin.Register(directive, setup) }

// CheckpointBelow puts our second handler of every block with notrack directly below the
// plugin of a directive. The owner of the list of directives calls it once, with "cache".
func CheckpointBelow(directive string) {
	caddy.RegisterParsingCallback("dns", directive, placeCheckpoints)
}

// SucceedAfter has the state of another instance taken when all plugins up to that of a directive
// have started. The owner of the list of directives calls it once, with the last one.
func SucceedAfter(directive string) {
	caddy.RegisterParsingCallback("dns", directive, func(ctx caddy.Context) error {
		if config := parsed.Load(); config != nil && config.context == ctx {
			config.first.OnStartup(func() error {
				config.agent.Succeed(config.load)
				config.agent.Recall(config.load)
				return nil
			})
		}
		return nil
	})
}

// CountSearch sets the function that counts the queries of search paths, for the control socket.
func CountSearch(count func() control.SearchFigures) { countSearch.Store(&count) }

var countSearch atomic.Pointer[func() control.SearchFigures]

// configurationKey is the key of the configuration in caddy's storage of a load.
type configurationKey struct{}

func setup(c *caddy.Controller) error {
	b, err := parse(c)
	if err != nil {
		return plugin.Error(directive, err)
	}
	config, ok := c.Get(configurationKey{}).(*configuration)
	if !ok {
		if config, err = newConfiguration(); err != nil {
			return plugin.Error(directive, err)
		}
		c.Set(configurationKey{}, config)
		config.first = c
		c.OnStartup(func() error { return config.start() })
		c.OnRestart(func() error {
			config.leaving.Store(true)
			return nil
		})
		c.OnRestartFailed(func() error { return config.restartFailed() })
		c.OnShutdown(func() error { return config.agent.Shutdown(config.load) })
	}
	if err := config.add(b); err != nil {
		return plugin.Error(directive, c.Err(err.Error()))
	}
	if err := refuseItself(c, b); err != nil {
		return plugin.Error(directive, err)
	}
	block := dnsserver.GetConfig(c)
	block.AddPlugin(func(next plugin.Handler) plugin.Handler {
		n := &NoTrack{Next: querymetrics.Instead(next, tallied{config.agent}), config: config, block: block}
		config.addHandler(n)
		return n
	})
	config.sockets = max(config.sockets, block.NumSockets, 1)
	config.idle = max(config.idle, cmp.Or(block.IdleTimeout, ledger.DefaultTCPIdle))
	config.gates = append(config.gates, gated{block, fairness.Own(c)})
	config.context = c.Context()
	parsed.Store(config)
	return nil
}

// parsed is the configuration of the Corefile that was set up last.
var parsed atomic.Pointer[configuration]

// placeCheckpoints runs after caddy has set up the directive above in all blocks. It puts
// our handler directly below.
func placeCheckpoints(ctx caddy.Context) error {
	config := parsed.Load()
	if config == nil || config.context != ctx {
		return nil
	}
	for _, g := range config.gates {
		g.block.AddPlugin(func(next plugin.Handler) plugin.Handler {
			return &checkpoint{Next: next, config: config, block: g.block, gate: g.gate}
		})
	}
	config.gates = nil
	return nil
}

func newConfiguration() (*configuration, error) {
	identity, err := checks.NewIdentity()
	if err != nil {
		return nil, err
	}
	return &configuration{
		agent:    process,
		block:    block{zones: map[iptables.Endpoint]string{}},
		identity: identity,
	}, nil
}
