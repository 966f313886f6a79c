package podmetrics

import (
	"strconv"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin"
)

func init() { plugin.Register(directive, setup) }

// How many pods have series of their own.
const (
	defaultTop = 20
	maxTop     = 1000
)

func setup(c *caddy.Controller) error {
	top, err := parse(c)
	if err != nil {
		return plugin.Error(directive, err)
	}
	c.OnStartup(func() error {
		process.start(top)
		return nil
	})
	c.OnShutdown(func() error {
		process.stop()
		return nil
	})
	return nil
}

func parse(c *caddy.Controller) (top int, err error) {
	top = defaultTop
	for first := true; c.Next(); first = false {
		if !first {
			return 0, c.Err("a server block can have only one podmetrics directive")
		}
		args := c.RemainingArgs()
		if len(args) > 1 || c.NextBlock() {
			return 0, c.Err("want `podmetrics [N]`, the number of pods with series of their own")
		}
		if len(args) == 1 {
			if top, err = strconv.Atoi(args[0]); err != nil || top < 1 || top > maxTop {
				return 0, c.Errf("%q is not a number of pods from 1 to %d", args[0], maxTop)
			}
		}
	}
	return top, nil
}
