//go:build load

package fastpath

import "testing"

func TestTheSameRepliesToVeryMany(t *testing.T) {
	b := newBoth(t)
	b.compareMany(t, 100_000, randomQuery)
	b.compareMany(t, 1_000_000, mutated)
}
