// Package fastpath is the directive fastpath: cached answers leave before CoreDNS sees the
// query, from sockets of its own or from the node's kernel at the pod's device.
//
// A cached answer through CoreDNS costs three times what it costs at a socket that answers
// from the cache's bytes, and many times what it costs in the kernel, where not even
// netfilter sees the query. This directive opens such sockets beside CoreDNS's. If it is told
// to, it loads a program, attaches it to the devices of pods, and has the cache announce its
// answers to it. The cache stays the authority, and fast paths answer only while the lease
// of notrack is held. Where the kernel or the container cannot, CoreDNS answers as before.
package fastpath

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"

	"github.com/trackless-dns/trackless/fastpath/socket"
	"github.com/trackless-dns/trackless/plugin/cache/budget"
	"github.com/trackless-dns/trackless/plugin/notrack"
)

const directive = "fastpath"

var log = clog.NewWithPlugin(directive)

func init() {
	plugin.Register(directive, setup)
	notrack.ShowFastPath(process.status)
	caddy.OnProcessExit = append(caddy.OnProcessExit, process.stop, sockets.stop)
	notrack.DenyLeases(sockets.stuck)
	notrack.ChoosesSockets(sockets.has)
}

// mode is whether the kernel answers.
type mode string

const (
	off   mode = "off"
	on    mode = "on"
	force mode = "force"
)

// options are those of one fastpath directive.
type options struct {
	settings
	sockets int // at each listen address; 0: none
}

func (o options) String() string { return fmt.Sprintf("kernel %s, sockets %d", o.settings, o.sockets) }

// settings are those of the program in the kernel.
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
	options

	line    int
	blocks  []*block
	context caddy.Context
	first   *caddy.Controller
}

// block is a server block with the directive.
type block struct {
	config  *dnsserver.Config   // of its first key, for which plugins are set up
	configs []*dnsserver.Config // of each key
	above   int                 // handlers that stand above the cache
	keys    string
}

// configurationKey is the key of the configuration in caddy's storage of a load.
type configurationKey struct{}

// parsed is the configuration of the Corefile that was set up last.
var parsed atomic.Pointer[configuration]

func setup(c *caddy.Controller) error {
	o, err := parse(c)
	if err != nil {
		return plugin.Error(directive, err)
	}
	config, ok := c.Get(configurationKey{}).(*configuration)
	if !ok {
		config = &configuration{options: o, line: c.Line(), context: c.Context(), first: c}
		c.Set(configurationKey{}, config)
	}
	if config.options != o {
		return plugin.Error(directive, c.Errf("%s here and %s in line %d: all server blocks share one program and its sockets; give them the same values", o, config.options, config.line))
	}
	cfg := dnsserver.GetConfig(c)
	if o.sockets > 0 {
		cfg.UDPDecorateWriterFunc = sockets.decorate(config, cfg.UDPDecorateWriterFunc)
	}
	config.blocks = append(config.blocks, &block{config: cfg, configs: configsOf(c), above: len(cfg.Plugin), keys: strings.Join(c.ServerBlockKeys, " ")})
	parsed.Store(config)
	return nil
}

// configsOf returns CoreDNS's configuration of each key of a block.
func configsOf(c *caddy.Controller) (configs []*dnsserver.Config) {
	key := *c
	for i := range max(len(c.ServerBlockKeys), 1) {
		key.ServerBlockKeyIndex = i
		configs = append(configs, dnsserver.GetConfig(&key))
	}
	return configs
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
		sockets.leaveOld(config)
		return nil
	})
	return nil
}

// parse reads the directive.
func parse(c *caddy.Controller) (options, error) {
	o := options{settings: settings{kernel: off}, sockets: defaultSockets()}
	seen := map[string]bool{}
	for n := 0; c.Next(); n++ {
		if n > 0 {
			return o, c.Errf("%v; remove one of the two", plugin.ErrOnce)
		}
		if args := c.RemainingArgs(); len(args) > 0 {
			return o, c.Errf("fastpath takes no arguments, but options in a block: %s", strings.Join(args, " "))
		}
		for c.NextBlock() {
			name, args := c.Val(), c.RemainingArgs()
			if seen[name] {
				return o, c.Errf("%s is repeated; remove one of the two", name)
			}
			seen[name] = true
			var err error
			switch name {
			case "kernel":
				if o.settings, err = parseKernel(args); err != nil {
					return o, c.Errf("kernel %s: %v; kernel takes off, on or force, then a number of bytes such as 8Mi", strings.Join(args, " "), err)
				}
			case "sockets":
				if o.sockets, err = parseSockets(args); err != nil {
					return o, c.Errf("sockets %s: %v; sockets takes off, or the number of sockets at each listen address, at most %d", strings.Join(args, " "), err, socket.MaxSockets)
				}
			default:
				return o, c.Errf("unknown option %s; use kernel or sockets", name)
			}
		}
	}
	return o, nil
}

// defaultSockets is how many readers can run at once. Eight answer more than a node asks, and
// more sockets take memory.
func defaultSockets() int { return min(runtime.GOMAXPROCS(0), 8) }

func parseSockets(args []string) (int, error) {
	if len(args) != 1 {
		return 0, fmt.Errorf("%d arguments", len(args))
	}
	if args[0] == string(off) {
		return 0, nil
	}
	n, err := strconv.Atoi(args[0])
	if err != nil || n < 1 || n > socket.MaxSockets {
		return 0, fmt.Errorf("%q is no such number", args[0])
	}
	return n, nil
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
