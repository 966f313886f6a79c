// Package engines has the engines in use in this process, so that a reload finds the
// answers of the configuration before it.
//
// CoreDNS reloads by setting up a second instance beside the first. What the
// first one knows is still true for the second if the names come to the same
// server block by the same listener, and the plugins below the cache are the
// same: then the answers would be the same. Equal fingerprints say so.
package engines

import (
	"slices"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// Registry has engines, each with the caches that use it. The zero value has none. It
// may be used by several goroutines at a time.
type Registry[Cache comparable] struct {
	mu  sync.Mutex
	all []*shared[Cache]
}

// shared is an engine with the caches that use it.
type shared[Cache comparable] struct {
	fingerprint string
	options     engine.Options
	rules       string
	engine      *engine.Engine
	owners      []Cache
}

// Want is the engine that a cache needs.
type Want struct {
	// Fingerprint stands for everything on which the answers depend. Empty, it equals
	// no other.
	Fingerprint string
	Options     engine.Options
	// Rules stand for what is stored, and for how long.
	Rules string
	// Keep reports whether the cache would have stored the answer, and for how long
	// at most.
	Keep func(key wire.Key, r *store.Record) (limit time.Duration, keep bool)
}

// Acquire returns the engine with the fingerprint: the same one if options and rules
// are the same, a new one with its answers if not, and a new one if there is none.
func (r *Registry[Cache]) Acquire(owner Cache, want Want) (*engine.Engine, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.find(want.Fingerprint)
	if before != nil && before.options == want.Options && before.rules == want.Rules {
		before.owners = append(before.owners, owner)
		return before.engine, nil
	}
	e, err := engine.New(want.Options)
	if err != nil {
		return nil, err
	}
	if before != nil {
		inherit(e, before.engine, want.Keep)
	}
	r.all = append(r.all, &shared[Cache]{
		fingerprint: want.Fingerprint, options: want.Options, rules: want.Rules, engine: e, owners: []Cache{owner},
	})
	return e, nil
}

// find returns the newest engine with the fingerprint, or nil: an older one may still
// have an owner that is leaving.
func (r *Registry[Cache]) find(fingerprint string) *shared[Cache] {
	if fingerprint == "" {
		return nil
	}
	for _, s := range slices.Backward(r.all) {
		if s.fingerprint == fingerprint {
			return s
		}
	}
	return nil
}

// inherit copies the answers that are to be kept.
func inherit(to, from *engine.Engine, keep func(key wire.Key, r *store.Record) (time.Duration, bool)) {
	now := time.Now()
	shift := to.Store().Time(now) - from.Store().Time(now)
	from.Store().Range(func(key wire.Key, r *store.Record) {
		limit, ok := keep(key, r)
		if !ok {
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

// Release takes the engines from the owners that leave, and closes those that nobody
// has any more.
func (r *Registry[Cache]) Release(leaves func(owner Cache) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = slices.DeleteFunc(r.all, func(s *shared[Cache]) bool {
		s.owners = slices.DeleteFunc(s.owners, leaves)
		if len(s.owners) > 0 {
			return false
		}
		s.engine.Close()
		return true
	})
}

// Each calls fn for each engine, the oldest first, with the caches that use it, the
// newest last. Nobody gets or releases an engine meanwhile.
func (r *Registry[Cache]) Each(fn func(e *engine.Engine, owners []Cache)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.all {
		fn(s.engine, s.owners)
	}
}
