package engine

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// sources gives numbers to upstreams, so that a record names its upstream in two bytes.
// 0 is an unknown upstream. The zero value is ready.
type sources struct {
	mu       sync.RWMutex
	names    []string // index: the number less one; empty: free
	numbers  map[string]uint16
	free     []uint16
	crowded  atomic.Bool // a name got no number, for lack of room
	forgotAt store.Time  // when names without answers were last forgotten
}

const (
	// maxSources is the number of upstreams. They come and go with their pods, but few
	// are in use at a time.
	maxSources = 1024
	// maxSource is the length of a name in bytes, at most.
	maxSource = 128
	// forgetEvery is the time between two searches for names without answers.
	forgetEvery = store.Time(time.Minute)
)

// number returns the number of a name, 0 if there is no room for it.
func (s *sources) number(name string) uint16 {
	if name == "" || len(name) > maxSource {
		return 0
	}
	s.mu.RLock()
	n := s.numbers[name]
	s.mu.RUnlock()
	if n != 0 {
		return n
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.numbers[name]; n != 0 {
		return n
	}
	switch {
	case len(s.free) > 0:
		n = s.free[len(s.free)-1]
		s.free = s.free[:len(s.free)-1]
		s.names[n-1] = name
	case len(s.names) < maxSources:
		s.names = append(s.names, name)
		n = uint16(len(s.names))
	default:
		s.crowded.Store(true)
		return 0
	}
	if s.numbers == nil {
		s.numbers = make(map[string]uint16)
	}
	s.numbers[name] = n
	return n
}

// name returns the name of a number, empty if it is not known.
func (s *sources) name(n uint16) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if n == 0 || int(n) > len(s.names) {
		return ""
	}
	return s.names[n-1]
}

// Source returns the upstream of a record, as Asked.From named it, or "" if it is not
// known.
func (e *Engine) Source(r *store.Record) string { return e.sources.name(r.Source()) }

// SourceNumber returns the number of an upstream in records, 0 if there is no room for
// more upstreams.
func (e *Engine) SourceNumber(from string) uint16 { return e.sources.number(from) }

// forgetSources frees the numbers of upstreams without answers.
func (e *Engine) forgetSources(now store.Time) {
	e.putting.Lock() // so that no Put has a number that is not in a record yet
	defer e.putting.Unlock()
	s := &e.sources
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.forgotAt != 0 && now-s.forgotAt < forgetEvery {
		return
	}
	s.forgotAt = now
	s.crowded.Store(false)
	var used [maxSources + 1]bool
	e.store.Range(func(_ wire.Key, r *store.Record) { used[r.Source()] = true })
	s.free = s.free[:0]
	for i, name := range s.names {
		if n := uint16(i + 1); !used[n] {
			delete(s.numbers, name)
			s.names[i] = ""
			s.free = append(s.free, n)
		}
	}
}

// SourceName returns the upstream with the number, "" if it is not known.
func (e *Engine) SourceName(number uint16) string { return e.sources.name(number) }
