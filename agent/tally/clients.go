package tally

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
)

// hasher has random numbers for the hashes of clients.
type hasher struct{ low, high uint64 }

func newHasher() hasher { return hasher{rand.Uint64(), rand.Uint64()} }

// of returns the hash of a client, which is odd. Its first bits choose the shard.
func (h hasher) of(client netip.Addr) uint64 {
	b := client.As16()
	// Two products of halves with random numbers, folded: as good as the numbers are secret.
	high, low := bits.Mul64(binary.NativeEndian.Uint64(b[8:])^h.low, binary.NativeEndian.Uint64(b[:])^h.high)
	return (high^low)*0x9e3779b97f4a7c15 | 1 // 2^64 divided by the golden ratio
}

// shardOf returns the index of the shard for a client with this hash.
func shardOf(hash uint64) int { return int(hash >> 61) }

// Clients counts queries by client alone, for metrics, while it is started. The zero value
// counts nothing. Its methods may be called from several goroutines at once.
type Clients struct{ current atomic.Pointer[clients] }

// clients are the queries since they were last taken, in half a megabyte.
type clients struct {
	hasher
	shards [shards]clientShard
}

type clientShard struct {
	mu     sync.Mutex
	counts bounded[netip.Addr]
	_      [64]byte // the next shard's mutex is in another cache line
}

// Start begins to count, from zero.
func (c *Clients) Start() {
	s := &clients{hasher: newHasher()}
	for i := range s.shards {
		s.shards[i].counts = newBounded(maxClients, func(a netip.Addr) netip.Addr { return a })
	}
	c.current.Store(s)
}

// Stop ends what Start began.
func (c *Clients) Stop() { c.current.Store(nil) }

// Take calls f once for each client, with the number of its queries since Take was called
// last. It returns the queries of all other clients: those for which there was no room.
func (c *Clients) Take(f func(client netip.Addr, queries uint64)) (rest uint64) {
	s := c.current.Load()
	if s == nil {
		return 0
	}
	buffer := make([]clientCount, 0, maxClients)
	for i := range s.shards {
		counts, others := s.shards[i].take(buffer)
		for _, c := range counts {
			f(c.client, c.queries)
		}
		rest += others
	}
	return rest
}

type clientCount struct {
	client  netip.Addr
	queries uint64
}

// take empties the shard into the buffer.
func (s *clientShard) take(buffer []clientCount) (counts []clientCount, rest uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &s.counts
	rest, b.rest = b.rest.queries, count{}
	b.each(func(a netip.Addr, c count) { buffer = append(buffer, clientCount{a, c.queries}) })
	clear(b.slots)
	b.used = 0
	return buffer, rest
}

// Running reports whether it is started.
func (c *Clients) Running() bool { return c.current.Load() != nil }

// Add counts a query.
func (c *Clients) Add(client netip.Addr) {
	s := c.current.Load()
	if s == nil {
		return
	}
	hash := s.of(client)
	sh := &s.shards[shardOf(hash)]
	sh.mu.Lock()
	sh.counts.add(hash, client, count{queries: 1})
	sh.mu.Unlock()
}
