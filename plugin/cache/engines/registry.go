// Package engines keeps the engines that are in use in this process, so that answers
// survive a reload.
//
// CoreDNS reloads by setting up a second instance beside the first. The answers of the
// first instance are right for the second if the same names come to the same server
// block by the same listener, and the plugins below the cache are the same. Equal
// fingerprints say so.
package engines

import (
	"slices"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// Registry holds engines, each with the caches that use it. The zero value is empty. Its
// methods may be called from several goroutines at once.
type Registry[Cache comparable] struct {
	mu  sync.Mutex
	all []*shared[Cache]
}

// shared is an engine with the caches that use it.
type shared[Cache comparable] struct {
	fingerprint string
	options     engine.Options
	rules       string
	keep        Keep
	engine      *engine.Engine
	owners      []Cache
}

// Want is the engine that a cache needs.
type Want struct {
	// Fingerprint stands for everything on which the answers depend. An empty one
	// equals no other.
	Fingerprint string
	Options     engine.Options
	// Rules stands for the options that decide which answers are stored, and for how
	// long.
	Rules string
	Keep  Keep
}

// Keep reports whether a cache would have stored an answer, and its longest lifetime.
type Keep func(key wire.Key, kind store.Kind, flags wire.Flags) (limit time.Duration, keep bool)

// Acquire shares the engine in use that has the same fingerprint, options and rules. If
// only the fingerprint matches, it makes a new engine with the answers that Keep keeps. If
// no fingerprint matches, it makes an empty engine.
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
		fingerprint: want.Fingerprint, options: want.Options, rules: want.Rules, keep: want.Keep, engine: e, owners: []Cache{owner},
	})
	return e, nil
}

// find returns the newest engine with the fingerprint, or nil. An older one may still be
// in use by an instance that is shutting down.
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

// inherit copies the answers that keep keeps, and which names exist. What else the denials deny, it does
// not copy.
func inherit(to, from *engine.Engine, keep Keep) {
	now := time.Now()
	to.InheritNames(from, now)
	shift := to.Store().Time(now) - from.Store().Time(now)
	from.Store().Range(func(key wire.Key, r *store.Record) {
		limit, ok := keep(key, r.Kind(), r.Flags())
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

// Release removes the owners for which leaves returns true, and closes the engines that
// have no owner any more.
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

// Each calls fn for each engine, in the order in which they were made, with its owners
// in the order in which they acquired it. Acquire and Release wait meanwhile.
func (r *Registry[Cache]) Each(fn func(e *engine.Engine, owners []Cache)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.all {
		fn(s.engine, s.owners)
	}
}

// State is an engine that can be handed over to another process, or filled by one.
type State struct {
	Fingerprint string // not empty
	Rules       string
	Engine      *engine.Engine
	Keep        Keep
}

// States returns the engines with a fingerprint, the newest first.
func (r *Registry[Cache]) States() (out []State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range slices.Backward(r.all) {
		if s.fingerprint != "" {
			out = append(out, State{s.fingerprint, s.rules, s.engine, s.keep})
		}
	}
	return out
}
