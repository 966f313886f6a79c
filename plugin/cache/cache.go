// Package cache is the directive cache: CoreDNS's cache, with the same options, metrics
// and answers, on an engine made for a node.
//
// A node-local cache fails in its own ways:
//
//   - It shares memory with the pods that it serves, so it must not grow with their
//     queries. Package store keeps packed answers in memory that is reserved once, and
//     package wire answers a hit by copying and patching bytes.
//   - Many pods ask for a popular name in the millisecond in which it expires, so one
//     query upstream must answer all of them. Package flight makes them wait for it.
//   - It restarts and reloads often, so an unchanged configuration must keep its
//     answers. Package fingerprint finds out whether it is unchanged, and package
//     engines keeps the answers.
//
// Package engine decides which answer to serve, and when to refresh it. This package
// is the glue to CoreDNS: it parses the Corefile, asks the next plugin, and counts.
package cache

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"

	"github.com/trackless-dns/trackless/fastpath"
	"github.com/trackless-dns/trackless/plugin/cache/budget"
	"github.com/trackless-dns/trackless/plugin/cache/cut"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/failures"
	"github.com/trackless-dns/trackless/plugin/cache/metrics"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// Cache is the plugin of one server block. New makes one; Open must be called
// before it caches anything. Its fields must not change once it serves.
type Cache struct {
	Next  plugin.Handler
	Zones []string // cache these names and the names below them

	// Jitter returns the delay of a refresh before the answer expires, from 0 up to
	// limit, so that nodes with equal TTLs do not ask at the same time. nil: a random
	// delay.
	Jitter func(limit time.Duration) time.Duration

	pcap, ncap       int // numbers of answers, or noCap
	pttl, minpttl    time.Duration
	nttl, minnttl    time.Duration
	failttl          time.Duration
	size             int // bytes; 0: budget.Default
	coalesce         bool
	prefetch         int
	duration         time.Duration
	percentage       int
	staleUpTo        time.Duration
	verifyStale      bool
	verifyTimeout    time.Duration // 0: no limit but that of the next plugin
	staleTTL         time.Duration
	staleRecheck     time.Duration
	preferPositive   bool
	keepttl          bool
	pexcept, nexcept []string
	nxdomain         [][]string // as written

	zonesLabel, viewLabel string
	keys, bind            []string // of the server block
	zones                 []zone
	pexceptZones          []zone
	nexceptZones          []zone
	bypass                []zone
	levels                cut.Levels

	engine    *engine.Engine
	flights   flights
	refreshes semaphore
	learning  semaphore
	probes    semaphore
	errors    *failures.Limit
	counters  metrics.ByServer
	stop      chan struct{}
	stopOnce  sync.Once
	instance  *perInstance
	countsAll bool // every response counts as one of the upstream: the plugin below publishes no upstream
	waits     func(client net.Addr) (end func())
	announcer atomic.Pointer[fastpath.Announcer] // nil: no fast path
	opened    int64                              // numbers the caches in the order in which they were opened

	now func() time.Time
}

// zone is a zone's name in wire format, lower case.
type zone []byte

const (
	maxTTL     = time.Hour        // of positive answers (CoreDNS's MaximumDefaultTTL)
	maxNTTL    = time.Hour / 2    // of denials
	minTTL     = 5 * time.Second  // of positive answers and denials, by default
	defaultCap = 10000            // positive answers, and denials, as in CoreDNS
	minCap     = 1024             // positive answers, and denials, as in CoreDNS
	noCap      = -1               // only the memory budget limits
	maxFail    = 5 * time.Minute  // of failures (RFC 2308 section 7.1)
	sweepEvery = 30 * time.Second // between removals of expired answers without traffic
)

// New returns a Cache with CoreDNS's defaults.
func New() *Cache {
	c := &Cache{
		Zones:      []string{"."},
		pcap:       defaultCap,
		ncap:       defaultCap,
		pttl:       maxTTL,
		minpttl:    minTTL,
		nttl:       maxNTTL,
		minnttl:    minTTL,
		failttl:    minTTL,
		coalesce:   true,
		duration:   time.Minute,
		percentage: 10,
		refreshes:  newSemaphore(maxRefreshes),
		learning:   newSemaphore(maxLearning),
		probes:     newSemaphore(maxProbes),
		levels:     cut.Levels{Default: cut.BelowToo},
		errors:     &failures.Reported,
		waits:      func(net.Addr) func() { return func() {} },
		now:        time.Now,
	}
	c.flights.Patience = c.flights.responses.patience
	return c
}

// Name implements plugin.Handler.
func (c *Cache) Name() string { return "cache" }

// OnWait sets a function that is called for each query that begins to wait for the response
// to another one, and its result when the wait ends. It must be called before the first
// query arrives.
func (c *Cache) OnWait(waits func(client net.Addr) (end func())) { c.waits = waits }

// Announce has answers announced with their uses to a fast path; nil ends that.
func (c *Cache) Announce(a *fastpath.Announcer) { c.announcer.Store(a) }

// HitAt is told that a fast path in this process has given a fresh answer over UDP at the
// listen address: others may give it, too.
func (c *Cache) HitAt(at netip.AddrPort, key wire.Key) {
	if a := c.announcer.Load(); a != nil {
		a.HitAt(at, key)
	}
}

// KeepsTTL reports whether answers have the TTL with which they were stored.
func (c *Cache) KeepsTTL() bool { return c.keepttl }

// Open reserves the memory of the cache. Close releases it. A cache that is not open
// passes every query to the next plugin.
func (c *Cache) Open() error {
	if err := c.prepare(); err != nil {
		return err
	}
	e, err := engine.New(c.options())
	if err != nil {
		return err
	}
	c.use(e)
	return nil
}

// Close empties the cache.
func (c *Cache) Close() {
	c.stopSweeping()
	if c.engine != nil {
		c.engine.Close()
	}
}

// prepare converts the configured zones to wire format.
func (c *Cache) prepare() error {
	for _, z := range []struct {
		from []string
		to   *[]zone
	}{{c.Zones, &c.zones}, {c.pexcept, &c.pexceptZones}, {c.nexcept, &c.nexceptZones}} {
		zones, err := wireZones(z.from)
		if err != nil {
			return err
		}
		*z.to = zones
	}
	for _, z := range c.nexceptZones {
		c.levels.Set(z, cut.PerType) // no denial of them is cached
	}
	return nil
}

func (c *Cache) use(e *engine.Engine) {
	c.engine = e
	c.stop = make(chan struct{})
}

// sweep removes expired answers every sweepEvery, so that metrics do not count them. It
// returns when the cache is closed.
func (c *Cache) sweep() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			c.engine.Store().Sweep(c.engine.Store().Time(c.now()))
			c.counters.SetEntries(c.engine.Store())
		case <-c.stop:
			return
		}
	}
}

func (c *Cache) stopSweeping() {
	if c.stop != nil {
		c.stopOnce.Do(func() { close(c.stop) })
	}
}

// options returns the options of the engine.
func (c *Cache) options() engine.Options {
	size := c.size
	if size == 0 {
		size = budget.Default("/", 1)
	}
	return engine.Options{
		Store:          store.Options{Bytes: size, Positive: capacity(c.pcap), Negative: capacity(c.ncap)},
		Stale:          c.staleUpTo,
		PreferPositive: c.preferPositive,
		KeepTTL:        c.keepttl,
		Prefetch:       c.prefetch,
		Gap:            c.duration,
		Percentage:     c.percentage,
	}
}

// capacity rounds a number of answers as CoreDNS does: to 256 shards of at least four.
func capacity(n int) int {
	if n == noCap {
		return 0
	}
	return max(n/256*256, minCap)
}

// Engine holds the answers, for replies that are made without a chain of plugins. It is
// nil until the server block has started. It has answers only for names that this cache
// may serve.
func (c *Cache) Engine() *engine.Engine { return c.engine }

// Caches reports whether answers for the name are cached. The name is in wire format and
// lower case.
func (c *Cache) Caches(name []byte) bool { return contains(c.zones, name) && !contains(c.bypass, name) }

func contains(zones []zone, name []byte) bool {
	for _, z := range zones {
		if len(z) == 1 || wire.InZone(name, z) {
			return true
		}
	}
	return false
}

func wireZones(names []string) ([]zone, error) {
	zones := make([]zone, 0, len(names))
	for _, name := range names {
		z, err := wire.AppendName(nil, name)
		if err != nil {
			return nil, plugin.Error("cache", err)
		}
		zones = append(zones, z)
	}
	return zones, nil
}

func (c *Cache) jitter(limit time.Duration) time.Duration {
	if c.Jitter != nil {
		return c.Jitter(limit)
	}
	if limit <= 0 {
		return 0
	}
	return rand.N(limit)
}

// Counters returns the metrics of the cache for the server with this address,
// as metrics.WithServer of CoreDNS returns it.
func (c *Cache) Counters(server string) *metrics.Counters {
	return c.counters.For(server, c.zonesLabel, c.viewLabel)
}

// serverOf returns the address of the server that handles the query, for labels.
func serverOf(ctx context.Context) string {
	if s, ok := ctx.Value(dnsserver.Key{}).(*dnsserver.Server); ok {
		return s.Addr
	}
	return ""
}
