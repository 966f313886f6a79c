package cache

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/coredns/caddy"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/budget"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/engines"
	"github.com/trackless-dns/trackless/plugin/cache/recall"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/warm"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// registry has the engines of this process.
var registry engines.Registry[*Cache]

// Handed are the caches, for an instance that replaces this one, or is replaced by it.
var Handed = recall.Handed{Caches: warm.Caches{States: registry.States}, Names: recall.Names{Blocks: blocks}}

// blocks returns the caches that are in use, the newest first.
func blocks() (all []recall.Block) {
	registry.Each(func(_ *engine.Engine, owners []*Cache) {
		c := owners[len(owners)-1] // the others may be shutting down
		all = slices.Insert(all, 0, recall.Block{CacheBlock: c.contents().CacheBlock, Cache: c})
	})
	return all
}

// opened counts the caches that were opened in this process.
var opened atomic.Int64

// inInstance is the key of perInstance in the storage of a caddy instance.
type inInstance struct{}

// perInstance is shared by the caches of a caddy instance.
type perInstance struct {
	defaultSized int // how many caches take their share of the default size
}

func instanceOf(controller *caddy.Controller) *perInstance {
	p, _ := controller.Get(inInstance{}).(*perInstance)
	if p == nil {
		p = &perInstance{}
		controller.Set(inInstance{}, p)
	}
	return p
}

// openShared opens the cache. It takes over the answers of a cache before the reload with
// the same fingerprint.
func (c *Cache) openShared(controller *caddy.Controller, fingerprint string) error {
	if err := c.prepare(); err != nil {
		return err
	}
	c.instance = instanceOf(controller)
	if c.size == 0 {
		c.size = budget.Default("/", c.instance.defaultSized)
	}
	return c.acquire(fingerprint)
}

func (c *Cache) acquire(fingerprint string) error {
	c.opened = opened.Add(1)
	e, err := registry.Acquire(c, engines.Want{Fingerprint: fingerprint, Options: c.options(), Rules: c.rules(), Keep: c.wouldKeep})
	if err != nil {
		return err
	}
	c.use(e)
	return nil
}

// rules returns the options that decide which answers are stored, and for how long.
func (c *Cache) rules() string {
	return fmt.Sprint(c.Zones, c.bypass, c.pexcept, c.nexcept, c.pttl, c.nttl, c.failttl, c.levels)
}

// wouldKeep reports whether this cache would have stored the answer, and its longest
// lifetime.
func (c *Cache) wouldKeep(key wire.Key, kind store.Kind, flags wire.Flags) (limit time.Duration, keep bool) {
	limit, excepted := c.pttl, c.pexceptZones
	if kind == store.Negative {
		limit, excepted = c.nttl, c.nexceptZones
		if rcode := flags.Rcode(); rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError {
			limit = c.failttl
		}
	}
	return limit, c.Caches(key.Name()) && !contains(excepted, key.Name())
}

// disown releases the cache's engine, which is closed if no other cache uses it.
func (c *Cache) disown() {
	c.stopSweeping()
	registry.Release(func(owner *Cache) bool { return owner == c })
}

// disownNewer releases the engines of caches that were opened after this one: by an
// instance that then failed to start, and whose shutdown functions are not called.
func (c *Cache) disownNewer() {
	registry.Release(func(owner *Cache) bool {
		if owner.instance == c.instance || owner.opened <= c.opened {
			return false
		}
		owner.stopSweeping()
		return true
	})
}
