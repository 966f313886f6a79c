package summary

import (
	"cmp"
	"slices"
)

// maxKeys is how many keys a top counts at a time: a megabyte of them. No node talks to more
// pods and Services. A flood with forged sources has more addresses, but none of these
// matters.
const maxKeys = 16384

// A top counts occurrences of keys and keeps the most frequent ones in bounded memory (after
// Misra and Gries, "Finding repeated elements", 1982). When there are too many keys, it
// forgets the rarer half. A count may be too low, by lost at most.
type top[K comparable] struct {
	counts map[K]uint64
	lost   uint64
	max    int
}

type keyCount[K comparable] struct {
	key   K
	count uint64
}

func newTop[K comparable]() *top[K] {
	return &top[K]{counts: make(map[K]uint64), max: maxKeys}
}

func (t *top[K]) add(key K) {
	t.counts[key]++
	if len(t.counts) > t.max {
		t.prune()
	}
}

// prune forgets the rarer half of the keys. If a key was forgotten with count n and comes
// again, its count is too low by n, and by its loss in earlier prunings.
func (t *top[K]) prune() {
	counts := make([]uint64, 0, len(t.counts))
	for _, n := range t.counts {
		counts = append(counts, n)
	}
	slices.Sort(counts)
	median := counts[len(counts)/2]
	keep := t.max / 2
	for key, n := range t.counts {
		if n < median || n == median && len(t.counts) > keep {
			delete(t.counts, key)
		}
	}
	t.lost += median
}

// largest returns the n most frequent keys, the most frequent first. Keys with equal counts
// are in the order of compare.
func (t *top[K]) largest(n int, compare func(a, b K) int) []keyCount[K] {
	all := make([]keyCount[K], 0, len(t.counts))
	for key, count := range t.counts {
		all = append(all, keyCount[K]{key, count})
	}
	slices.SortFunc(all, func(a, b keyCount[K]) int {
		return cmp.Or(cmp.Compare(b.count, a.count), compare(a.key, b.key))
	})
	return all[:min(n, len(all))]
}
