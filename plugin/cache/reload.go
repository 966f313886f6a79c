package cache

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/coredns/caddy"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// CoreDNS reloads by setting up a second instance beside the first. What the
// first one knows is still true for the second if the names come to the same
// server block by the same listener, and the plugins below the cache are the
// same: then the answers would be the same.

// shared is an engine with the caches that use it.
type shared struct {
	fingerprint string
	options     engine.Options
	rules       string // what is stored, and for how long
	engine      *engine.Engine
	owners      []*Cache
}

// engines are the engines in use in this process.
type engines struct {
	mu     sync.Mutex
	all    []*shared
	opened int
}

var registry engines

// inInstance is the key under which a caddy instance keeps what its caches share.
type inInstance struct{}

// perInstance is what the caches of a caddy instance share.
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

// openShared opens the cache with the answers of the cache in its place before
// the reload, if there is one with the fingerprint.
func (c *Cache) openShared(controller *caddy.Controller, fingerprint string) error {
	if err := c.prepare(); err != nil {
		return err
	}
	opts := c.options()
	c.instance = instanceOf(controller)
	if c.size == 0 {
		opts.Store.Bytes = defaultSize("/", c.instance.defaultSized)
	}
	e, err := registry.acquire(c, fingerprint, opts)
	if err != nil {
		return err
	}
	c.use(e)
	return nil
}

// acquire returns the engine with the fingerprint: the same one if its options
// are the same, a new one with its answers if not, and a new one if there is
// none. An empty fingerprint is nobody's.
func (r *engines) acquire(c *Cache, fingerprint string, opts engine.Options) (*engine.Engine, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opened++
	c.opened = r.opened
	var before *shared
	if fingerprint != "" {
		// The newest: an older one may still have an owner that is leaving.
		for _, s := range slices.Backward(r.all) {
			if s.fingerprint == fingerprint {
				before = s
				break
			}
		}
	}
	rules := c.rules()
	if before != nil && before.options == opts && before.rules == rules {
		before.owners = append(before.owners, c)
		return before.engine, nil
	}
	e, err := engine.New(opts)
	if err != nil {
		return nil, err
	}
	if before != nil {
		c.inherit(e, before.engine)
	}
	r.all = append(r.all, &shared{fingerprint: fingerprint, options: opts, rules: rules, engine: e, owners: []*Cache{c}})
	return e, nil
}

// rules stand for the options that decide which answers are stored, and for how long.
func (c *Cache) rules() string {
	return fmt.Sprint(c.Zones, c.bypass, c.pexcept, c.nexcept, c.pttl, c.nttl, c.failttl)
}

// inherit copies the answers that this cache would have stored too, for as
// long as it would have.
func (c *Cache) inherit(to, from *engine.Engine) {
	now := time.Now()
	shift := to.Store().Time(now) - from.Store().Time(now)
	from.Store().Range(func(key wire.Key, r *store.Record) {
		limit, excepted := c.pttl, c.pexceptZones
		if r.Kind() == store.Negative {
			limit, excepted = c.nttl, c.nexceptZones
			if rcode := r.Flags().Rcode(); rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError {
				limit = c.failttl
			}
		}
		if !c.Caches(key.Name()) || contains(excepted, key.Name()) {
			return
		}
		to.Store().Put(key, r.Kind(), &store.Entry{
			Stored:    r.Stored() + shift,
			TTL:       min(r.TTL(), uint32(limit/time.Second)),
			Answer:    r.Answer(),
			Answering: r.Answering(),
			ForAll:    r.ForAll(),
			Wildcard:  r.Wildcard(),
			Source:    to.SourceNumber(from.Source(r)),
		})
	})
}

// disown lets go of the cache's engine, and closes it if nobody else has it.
func (r *engines) disown(c *Cache) {
	c.stopSweeping()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(func(owner *Cache) bool { return owner == c })
}

// disownNewer lets go of what was opened after the cache: by an instance that
// then failed to start, which nothing tells it.
func (r *engines) disownNewer(c *Cache) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(func(owner *Cache) bool {
		if owner.instance == c.instance || owner.opened <= c.opened {
			return false
		}
		owner.stopSweeping()
		return true
	})
}

// drop removes owners, and engines without any.
func (r *engines) drop(leaves func(*Cache) bool) {
	r.all = slices.DeleteFunc(r.all, func(s *shared) bool {
		s.owners = slices.DeleteFunc(s.owners, leaves)
		if len(s.owners) > 0 {
			return false
		}
		s.engine.Close()
		return true
	})
}
