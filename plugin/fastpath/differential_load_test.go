//go:build load

package fastpath

import (
	"flag"
	"testing"
)

var (
	queries = flag.Int("queries", 5_000, "random queries that TestTheSameRepliesToVeryMany asks")
	packets = flag.Int("packets", 20_000, "mutated packets that it sends")
)

func TestTheSameRepliesToVeryMany(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long under the race detector")
	}
	b := newBoth(t)
	b.compareMany(t, *queries, randomQuery)
	b.compareMany(t, *packets, mutated)
}
