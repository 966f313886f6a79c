// Package cache is the directive cache: CoreDNS's cache, with the same options, metrics
// and answers, on an engine made for a node.
//
// A node-local cache fails in its own ways: it shares its memory with the
// pods it serves, so it must not grow with what they ask; a popular name that
// expires is asked for by many of them in the same millisecond, so one query
// upstream must do for all; it restarts and reloads often, so an unchanged
// configuration must find its answers again. The answers therefore lie packed
// in memory reserved once (package store), a hit copies and patches octets
// (package wire), and what to serve and when to ask again is decided in one
// place (package engine). This package is the glue to CoreDNS: it parses the Corefile, asks
// the next plugin, and counts.
package cache

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"

	"github.com/trackless-dns/trackless/plugin/cache/budget"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/metrics"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// Cache is the plugin of one server block. New makes one; Open must be called
// before it caches anything. Its fields must not change once it serves.
type Cache struct {
	Next  plugin.Handler
	Zones []string // names to cache, and what is below them

	// Jitter picks the delay of a refresh before the answer expires, from 0
	// up to limit, so that nodes with equal TTLs do not ask at the same time. nil:
	// at random.
	Jitter func(limit time.Duration) time.Duration

	pcap, ncap       int // answers, or noCap
	pttl, minpttl    time.Duration
	nttl, minnttl    time.Duration
	failttl          time.Duration
	size             int // octets; 0: budget.Default
	coalesce         bool
	prefetch         int
	duration         time.Duration
	percentage       int
	staleUpTo        time.Duration
	verifyStale      bool
	verifyTimeout    time.Duration // 0: as long as the next plugin takes
	staleTTL         time.Duration
	staleRecheck     time.Duration
	preferPositive   bool
	keepttl          bool
	pexcept, nexcept []string

	zonesLabel, viewLabel string
	keys, bind            []string // of the server block
	zones                 []zone
	pexceptZones          []zone
	nexceptZones          []zone
	bypass                []zone

	engine    *engine.Engine
	flights   flights
	refreshes semaphore
	knocks    semaphore
	errors    *errorLimit
	counters  metrics.ByServer
	stop      chan struct{}
	stopOnce  sync.Once
	instance  *perInstance
	hearsAll  bool // the plugin that forwards does not say whom it asks
	waits     func(client net.Addr) (end func())
	opened    int64 // ordinal number of its opening in this process

	now func() time.Time
}

// zone is a zone's name in wire format, lower case.
type zone []byte

const (
	maxTTL     = time.Hour        // of positive answers (CoreDNS's MaximumDefaultTTL)
	maxNTTL    = time.Hour / 2    // of denials
	minTTL     = 5 * time.Second  // of both, by default
	defaultCap = 10000            // answers of each kind, as in CoreDNS
	minCap     = 1024             // of each kind, as in CoreDNS
	noCap      = -1               // the memory budget alone limits
	maxFail    = 5 * time.Minute  // RFC 2308 section 7.1: a failure for no longer
	sweepEvery = 10 * time.Second // how often expired answers are looked for without traffic
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
		knocks:     newSemaphore(maxKnocks),
		errors:     &reported,
		waits:      func(net.Addr) func() { return func() {} },
		now:        time.Now,
	}
	c.flights.Patience = c.flights.responses.patience
	return c
}

// Name implements plugin.Handler.
func (c *Cache) Name() string { return "cache" }

// OnWait has waits called for each query that begins to wait for the response to
// another, and end when it does no longer. It must be called before the first query
// comes.
func (c *Cache) OnWait(waits func(client net.Addr) (end func())) { c.waits = waits }

// Open reserves the memory of the cache. Close gives it back. A cache that is not
// open passes every query on.
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

// prepare turns the configured zones into what names are compared with.
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
	return nil
}

func (c *Cache) use(e *engine.Engine) {
	c.engine = e
	c.stop = make(chan struct{})
}

// sweep removes expired answers now and then, so that memory and metrics do
// not speak of what is gone. It returns when the cache is closed.
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

// options are what the engine needs to know of the configuration.
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

// capacity rounds as CoreDNS does: 256 shards of at least four.
func capacity(n int) int {
	if n == noCap {
		return 0
	}
	return max(n/256*256, minCap)
}

// Engine is where the answers are, for those who answer without a chain of
// plugins. It is nil until the server block has started. Names that the
// engine has an answer for are names this cache was asked for and may serve.
func (c *Cache) Engine() *engine.Engine { return c.engine }

// Caches reports whether the name, in wire format and lower case, is one to
// cache.
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

// serverOf is the address of the server that handles the query, for labels.
func serverOf(ctx context.Context) string {
	if s, ok := ctx.Value(dnsserver.Key{}).(*dnsserver.Server); ok {
		return s.Addr
	}
	return ""
}
