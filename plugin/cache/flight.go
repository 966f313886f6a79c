package cache

import (
	"context"
	"sync"

	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

const (
	// maxWaiters is how many queries may wait for others at a time. More go
	// upstream themselves, so that waiting costs a bounded amount of memory.
	maxWaiters = 16384
	// maxRefreshes is how many refreshes may be under way at a time.
	maxRefreshes = 256
	// maxRounds is how often a query waits for another in vain before it goes
	// upstream without regard to others.
	maxRounds = 2
)

// outcome is what came of a query upstream, for those who waited for it.
type outcome struct {
	// shared: the others may have this outcome. It is not for one client's
	// network, not for another question, and not a client that went away.
	shared bool
	// answered: there is a response; otherwise code and err are all.
	answered  bool
	answer    wire.Answer
	ttl       uint32
	truncated bool // for replies of up to size octets
	size      int
	wildcard  string
	refreshed bool // the response replaces a stale answer

	code int
	err  error
}

// flight is a query upstream that others can wait for.
type flight struct {
	done    chan struct{}
	outcome outcome // to be read when done is closed
}

// flights are the queries upstream under way, by key: at most one for each.
// The zero value is ready.
type flights struct {
	mu      sync.Mutex
	byKey   map[string]*flight
	waiters int
}

// lead starts a flight, or returns nil if there is one already.
func (f *flights) lead(key wire.Key) *flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byKey[string(key)] != nil {
		return nil
	}
	return f.start(key)
}

func (f *flights) start(key wire.Key) *flight {
	if f.byKey == nil {
		f.byKey = make(map[string]*flight)
	}
	fl := &flight{done: make(chan struct{})}
	f.byKey[string(key)] = fl
	return fl
}

// join finds the flight with the key or starts it, which leader tells. It
// returns nil if too many wait already. Followers must call wait.
func (f *flights) join(key wire.Key) (fl *flight, leader bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl = f.byKey[string(key)]; fl == nil {
		return f.start(key), true
	}
	if f.waiters >= maxWaiters {
		return nil, false
	}
	f.waiters++
	return fl, false
}

// wait returns the outcome of the flight, or false if ctx was done before.
func (f *flights) wait(ctx context.Context, fl *flight) (*outcome, bool) {
	defer func() {
		f.mu.Lock()
		f.waiters--
		f.mu.Unlock()
	}()
	select {
	case <-fl.done:
		return &fl.outcome, true
	case <-ctx.Done():
		return nil, false
	}
}

// finish ends a flight. It must be called once by whoever started it.
func (f *flights) finish(key wire.Key, fl *flight) {
	f.mu.Lock()
	delete(f.byKey, string(key))
	f.mu.Unlock()
	close(fl.done)
}

// semaphore bounds what is under way.
type semaphore chan struct{}

func newSemaphore(n int) semaphore { return make(semaphore, n) }

func (s semaphore) tryAcquire() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s semaphore) release() { <-s }
