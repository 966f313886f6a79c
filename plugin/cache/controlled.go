package cache

import (
	"errors"
	"strings"

	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/plugin/cache/contents"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
)

// Controlled returns the caches of this process, for the control socket.
func Controlled() control.CacheHolder { return contents.Holder{Each: each, Log: log} }

var errNoCache = errors.New("the Corefile in force has no cache directive")

// each calls fn for each engine that is in use.
func each(fn func(contents.Cache)) error {
	none := true
	registry.Each(func(e *engine.Engine, owners []*Cache) {
		none = false
		newest := owners[len(owners)-1] // the others may be shutting down
		shown := newest.contents()
		shown.Flushed = func() {
			newest.counters.SetEntries(e.Store())
			for _, c := range owners {
				c.flights.Abandon()
			}
		}
		fn(shown)
	})
	if none {
		return errNoCache
	}
	return nil
}

// contents returns the cache as package contents needs it.
func (c *Cache) contents() contents.Cache {
	block := control.CacheBlock{ServerBlock: strings.Join(c.keys, " "), Bind: c.bind, View: c.viewLabel, Zones: c.Zones}
	return contents.Cache{CacheBlock: block, Engine: c.engine, Prefetch: c.prefetch > 0, Now: c.now()}
}
