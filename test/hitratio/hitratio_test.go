package hitratio

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"sort"
	"testing"

	"github.com/maypok86/otter/v2"

	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// The policies compared on one trace, all with room for the same number of
// answers. Ours is the store itself, with its shards, its overhead and its
// limit in bytes.
type policy interface {
	// access looks a name up, stores it if it is not there, and reports a hit.
	access(name uint32) bool
}

// zipf draws ranks from 0 to n-1 with probability proportional to
// 1/(rank+1)^s. math/rand's cannot do s <= 1.
type zipf []float64

func newZipf(n int, s float64) zipf {
	z := make(zipf, n)
	sum := 0.0
	for i := range z {
		sum += math.Pow(float64(i+1), -s)
		z[i] = sum
	}
	for i := range z {
		z[i] /= sum
	}
	return z
}

func (z zipf) draw(r *rand.Rand) int { return min(sort.SearchFloat64s(z, r.Float64()), len(z)-1) }

// trace is a series of names. Every churn accesses (0: never) a name, picked
// by its popularity, goes out of use and a new one takes its rank, as pods and
// their names do.
func trace(names, length, churn int, s float64, seed uint64) []uint32 {
	r := rand.New(rand.NewPCG(seed, 0))
	z := newZipf(names, s)
	rank := make([]uint32, names)
	for i := range rank {
		rank[i] = uint32(i)
	}
	next := uint32(names)
	out := make([]uint32, length)
	for i := range out {
		if churn > 0 && i%churn == 0 {
			rank[z.draw(r)] = next
			next++
		}
		out[i] = rank[z.draw(r)]
	}
	return out
}

type storePolicy struct {
	s   *store.Store
	e   *store.Entry
	key wire.Key
}

func (p *storePolicy) access(name uint32) bool {
	p.key = append(p.key[:0], 4, byte(name>>24), byte(name>>16), byte(name>>8), byte(name), 7, 'e', 'x', 'a', 'm', 'p', 'l', 'e', 3, 'o', 'r', 'g', 0, 0, 1, 0, 1, 0)
	v := p.s.View(p.key)
	r := v.Record(store.Positive)
	if r != nil {
		r.Touch()
	}
	v.Close()
	if r != nil {
		return true
	}
	p.s.Put(p.key, store.Positive, p.e)
	return false
}

type otterPolicy struct {
	c *otter.Cache[uint32, struct{}]
}

func newOtter(t testing.TB, size int) policy {
	c, err := otter.New(&otter.Options[uint32, struct{}]{MaximumSize: size, Executor: func(f func()) { f() }})
	if err != nil {
		t.Fatal(err)
	}
	return otterPolicy{c}
}

func (p otterPolicy) access(name uint32) bool {
	if _, ok := p.c.GetIfPresent(name); ok {
		return true
	}
	p.c.Set(name, struct{}{})
	return false
}

// randomPolicy evicts a random answer, as CoreDNS's cache does.
type randomPolicy struct {
	at    map[uint32]int
	names []uint32
	size  int
	r     *rand.Rand
}

func newRandom(size int) policy {
	return &randomPolicy{at: map[uint32]int{}, size: size, r: rand.New(rand.NewPCG(1, 1))}
}

func (p *randomPolicy) access(name uint32) bool {
	if _, ok := p.at[name]; ok {
		return true
	}
	if len(p.names) < p.size {
		p.at[name] = len(p.names)
		p.names = append(p.names, name)
		return false
	}
	i := p.r.IntN(p.size)
	delete(p.at, p.names[i])
	p.at[name], p.names[i] = i, name
	return false
}

// sievePolicy is SIEVE (Zhang et al., NSDI 2024), the other candidate: one
// list, one bit, one hand.
type sievePolicy struct {
	size int
	at   map[uint32]*sieveNode
	root sieveNode
	hand *sieveNode
}

type sieveNode struct {
	name         uint32
	used         bool
	newer, older *sieveNode
}

func newSieve(size int) policy {
	p := &sievePolicy{size: size, at: map[uint32]*sieveNode{}}
	p.root.newer, p.root.older = &p.root, &p.root
	p.hand = &p.root
	return p
}

func (p *sievePolicy) access(name uint32) bool {
	if n := p.at[name]; n != nil {
		n.used = true
		return true
	}
	if len(p.at) >= p.size {
		for p.hand == &p.root || p.hand.used {
			p.hand.used = false
			p.hand = p.hand.newer
		}
		n := p.hand
		p.hand = n.newer
		n.newer.older, n.older.newer = n.older, n.newer
		delete(p.at, n.name)
	}
	n := &sieveNode{name: name, newer: &p.root, older: p.root.older}
	n.older.newer, p.root.older = n, n
	p.at[name] = n
	return false
}

// fullStore returns a store and how many such answers fit.
func fullStore(t testing.TB, size int) (*storePolicy, int) {
	e := &store.Entry{TTL: 3600, Answering: true, Answer: wire.Answer{
		Flags: 1, Counts: [3]uint16{1, 2, 1}, Body: bytes.Repeat([]byte{1}, 16), TTLs: []byte{1, 0},
	}}
	p := &storePolicy{s: open(t, size), e: e}
	for i := range uint32(size / 60) {
		p.access(i | 1<<31)
	}
	answers := p.s.Len(store.Positive)
	p.s = open(t, size)
	return p, answers
}

func open(t testing.TB, size int) *store.Store {
	t.Helper()
	s, err := store.New(store.Options{Bytes: size})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func ratio(p policy, names []uint32) float64 {
	hits := 0
	for _, name := range names {
		if p.access(name) {
			hits++
		}
	}
	return 100 * float64(hits) / float64(len(names))
}

// TestHitRatio compares the store with otter (adaptive W-TinyLFU) and random eviction, each
// with room for as many answers.
func TestHitRatio(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	compareHitRatios(t, 100_000, 600_000)
}

func compareHitRatios(t testing.TB, names, length int) {
	for _, s := range []float64{0.9, 1.0, 1.1} {
		for _, churn := range []int{500, 50} {
			accesses := trace(names, length, churn, s, 7)
			ours, size := fullStore(t, 1<<20)
			got, random, otter, sieve := ratio(ours, accesses), ratio(newRandom(size), accesses), ratio(newOtter(t, size), accesses), ratio(newSieve(size), accesses)
			line := fmt.Sprintf("Zipf(%.1f), a name replaced every %d accesses, room for %d of %d: ours %.2f %%, otter %.2f %%, SIEVE %.2f %%, random %.2f %%",
				s, churn, size, names, got, otter, sieve, random)
			t.Log(line)
			if got <= random {
				t.Error("not above random eviction: " + line)
			}
			if got < otter*0.99 {
				t.Error("more than 1 % below otter: " + line)
			}
		}
	}
}

// BenchmarkHitRatio compares cost and hit ratio of the policies.
func BenchmarkHitRatio(b *testing.B) {
	for _, s := range []float64{0.9, 1.0, 1.1} {
		for _, churn := range []int{0, 200, 20} {
			accesses := trace(200_000, 3_000_000, churn, s, 42)
			_, size := fullStore(b, 1<<20)
			for _, p := range []struct {
				name string
				open func() policy
			}{
				{"ours", func() policy { p, _ := fullStore(b, 1<<20); return p }},
				{"otter", func() policy { return newOtter(b, size) }},
				{"sieve", func() policy { return newSieve(size) }},
				{"random", func() policy { return newRandom(size) }},
			} {
				b.Run(fmt.Sprintf("zipf%.1f/churn%d/%s", s, churn, p.name), func(b *testing.B) {
					for b.Loop() {
						pol := p.open()
						b.ReportMetric(ratio(pol, accesses), "hit%")
					}
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(accesses)), "ns/access")
				})
			}
		}
	}
}
