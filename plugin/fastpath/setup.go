// Package fastpath is the directive fastpath: cached answers leave the node's kernel at
// the pod's device, before netfilter and CoreDNS see the query.
//
// A cached answer through a socket costs the system many times what it costs in the
// kernel, and even an untracked query passes the hooks of netfilter. This directive loads
// a program, attaches it to the devices of pods, and has the cache announce its answers to
// it. The cache stays the authority, and the program answers only while the lease of
// notrack is held. Where the kernel or the container cannot, CoreDNS answers as before.
package fastpath

import (
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"

	"github.com/trackless-dns/trackless/plugin/cache/budget"
	"github.com/trackless-dns/trackless/plugin/notrack"
)

const directive = "fastpath"

var log = clog.NewWithPlugin(directive)

func init() {
	plugin.Register(directive, setup)
	notrack.ShowFastPath(process.status)
	caddy.OnProcessExit = append(caddy.OnProcessExit, process.stop)
}

// mode is whether the kernel answers.
type mode string

const (
	off   mode = "off"
	on    mode = "on"
	force mode = "force"
)

// settings are those of one fastpath directive.
type settings struct {
	kernel mode
	size   int // bytes; 0: the default
}

func (s settings) String() string {
	if s.size == 0 {
		return string(s.kernel)
	}
	return fmt.Sprintf("%s %d", s.kernel, s.size)
}

// configuration merges all fastpath directives of one load of a Corefile.
type configuration struct {
	settings

	line    int
	blocks  []*block
	context caddy.Context
	first   *caddy.Controller
}

// block is a server block with the directive.
type block struct {
	config *dnsserver.Config
	above  int // handlers that stand above the cache
	keys   string
}

// configurationKey is the key of the configuration in caddy's storage of a load.
type configurationKey struct{}

// parsed is the configuration of the Corefile that was set up last.
var parsed atomic.Pointer[configuration]

func setup(c *caddy.Controller) error {
	s, err := parse(c)
	if err != nil {
		return plugin.Error(directive, err)
	}
	config, ok := c.Get(configurationKey{}).(*configuration)
	if !ok {
		config = &configuration{settings: s, line: c.Line(), context: c.Context(), first: c}
		c.Set(configurationKey{}, config)
	}
	if config.settings != s {
		return plugin.Error(directive, c.Errf("kernel %s here and kernel %s in line %d: all server blocks share one program; give them the same values", s, config.settings, config.line))
	}
	cfg := dnsserver.GetConfig(c)
	config.blocks = append(config.blocks, &block{config: cfg, above: len(cfg.Plugin), keys: strings.Join(c.ServerBlockKeys, " ")})
	parsed.Store(config)
	return nil
}

// StartAfter starts fast paths when the plugin of a directive has started. The owner of
// the list of directives calls it once, with "cache".
func StartAfter(directive string) {
	caddy.RegisterParsingCallback("dns", directive, start)
}

// start runs after caddy has set up the directive in all blocks. What it registers runs
// after the functions that these have registered.
func start(ctx caddy.Context) error {
	config := parsed.Load()
	if config == nil || config.context != ctx {
		return nil
	}
	c := config.first
	c.OnStartup(func() error {
		process.follow(config)
		return nil
	})
	c.OnRestartFailed(func() error {
		process.follow(config)
		return nil
	})
	c.OnShutdown(func() error {
		process.leave(config)
		return nil
	})
	return nil
}

// parse reads the directive.
func parse(c *caddy.Controller) (settings, error) {
	s := settings{kernel: off}
	seen := false
	for n := 0; c.Next(); n++ {
		if n > 0 {
			return s, c.Errf("%v; remove one of the two", plugin.ErrOnce)
		}
		if args := c.RemainingArgs(); len(args) > 0 {
			return s, c.Errf("fastpath takes no arguments, but options in a block: %s", strings.Join(args, " "))
		}
		for c.NextBlock() {
			name, args := c.Val(), c.RemainingArgs()
			if name != "kernel" {
				return s, c.Errf("unknown option %s; use kernel", name)
			}
			if seen {
				return s, c.Err("kernel is repeated; remove one of the two")
			}
			seen = true
			var err error
			if s, err = parseKernel(args); err != nil {
				return s, c.Errf("kernel %s: %v; kernel takes off, on or force, then a number of bytes such as 8Mi", strings.Join(args, " "), err)
			}
		}
	}
	return s, nil
}

func parseKernel(args []string) (s settings, err error) {
	if len(args) == 0 || len(args) > 2 {
		return s, fmt.Errorf("%d arguments", len(args))
	}
	switch s.kernel = mode(args[0]); s.kernel {
	case off, on, force:
	default:
		return s, fmt.Errorf("unknown mode %q", args[0])
	}
	if len(args) == 2 {
		s.size, err = budget.Parse(args[1])
	}
	return s, err
}
