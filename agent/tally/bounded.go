package tally

import "slices"

// bounded counts by key in bounded memory, so that the frequent keys are exact. While it is
// less than half full it takes every key. Then a new key must come twice: a flood of keys
// that come once enters nothing. When it is full, the rarer half goes to rest.
//
// Keys are told apart by a hash of 64 bits. A Go map, which compares them, takes three times
// as long.
type bounded[K any] struct {
	slots []slot // an open-addressed table, at most half full
	keys  []K    // of the slots
	used  int
	rest  count
	seen  []uint32  // hashes of keys that came once; a later one replaces them
	own   func(K) K // returns a key that shares no memory with a query
}

// slot has the hash 0 while it is free.
type slot struct {
	hash uint64
	count
}

// newBounded returns a table for so many keys, a power of two.
func newBounded[K any](size int, own func(K) K) bounded[K] {
	return bounded[K]{slots: make([]slot, 2*size), keys: make([]K, 2*size), seen: make([]uint32, 2*size), own: own}
}

// place returns the slot of a hash, or the free one for it.
func (b *bounded[K]) place(hash uint64) int {
	mask := len(b.slots) - 1
	i := int(hash>>1) & mask
	for b.slots[i].hash != hash && b.slots[i].hash != 0 {
		i = (i + 1) & mask
	}
	return i
}

// add counts for a key with this hash, which must be odd.
func (b *bounded[K]) add(hash uint64, k K, c count) {
	if i := b.place(hash); b.slots[i].hash != 0 {
		b.slots[i].add(c)
		return
	}
	if b.crowded() && !b.cameBefore(hash) {
		b.rest.add(c)
		return
	}
	b.insert(hash, k, c)
}

// addMiss counts a miss. The query comes later and is what makes a new key known, except
// where there is room for all.
func (b *bounded[K]) addMiss(hash uint64, k K) {
	miss := count{misses: 1}
	switch i := b.place(hash); {
	case b.slots[i].hash != 0:
		b.slots[i].add(miss)
	case b.crowded():
		b.rest.add(miss)
	default:
		b.insert(hash, k, miss)
	}
}

// crowded reports whether half of the keys for which there is room are there.
func (b *bounded[K]) crowded() bool { return b.used >= len(b.slots)/4 }

// cameBefore reports whether a key came before, lately, and remembers it.
func (b *bounded[K]) cameBefore(hash uint64) bool {
	seen := &b.seen[int(hash>>1)&(len(b.seen)-1)]
	before := *seen == uint32(hash>>32)
	*seen = uint32(hash >> 32)
	return before
}

func (b *bounded[K]) insert(hash uint64, k K, c count) {
	if b.used >= len(b.slots)/2 {
		b.prune()
	}
	i := b.place(hash)
	b.slots[i], b.keys[i] = slot{hash, c}, b.own(k)
	b.used++
}

// prune removes the rarer half.
func (b *bounded[K]) prune() {
	slots, keys := b.slots, b.keys
	b.slots, b.keys = make([]slot, len(slots)), make([]K, len(keys))
	order := make([]int, 0, b.used)
	for i := range slots {
		if slots[i].hash != 0 {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(i, j int) int { return int(slots[j].queries) - int(slots[i].queries) })
	keep := len(order) / 2
	for _, from := range order[:keep] {
		to := b.place(slots[from].hash)
		b.slots[to], b.keys[to] = slots[from], keys[from]
	}
	for _, from := range order[keep:] {
		b.rest.add(slots[from].count)
	}
	b.used = keep
}

// each calls f for each key.
func (b *bounded[K]) each(f func(K, count)) {
	for i := range b.slots {
		if b.slots[i].hash != 0 {
			f(b.keys[i], b.slots[i].count)
		}
	}
}
