package counter

import (
	"math"
	"testing"
)

func TestRise(t *testing.T) {
	for _, tc := range []struct {
		name                string
		before, after, want uint32
	}{
		{"no change", 7, 7, 0},
		{"rise", 5, 12, 7},
		{"first reading of a counter that is more than half full", 0, math.MaxUint32 - 1, math.MaxUint32 - 1},
		{"wrap", math.MaxUint32 - 1, 5, 7},
		{"wrap to 0", math.MaxUint32, 0, 1},
		{"began again", 5, 3, 3},
		{"began again at 0", 1_000_000, 0, 0},
		{"fell by half its range", 1<<31 + 1, 1, 1},
		{"fell by more than half its range", 1<<31 + 2, 1, 1<<31 - 1},
	} {
		if got := Rise(tc.before, tc.after); got != tc.want {
			t.Errorf("32 bits, %s: %d to %d is a rise of %d, want %d", tc.name, tc.before, tc.after, got, tc.want)
		}
	}
	for _, tc := range []struct {
		name                string
		before, after, want uint64
	}{
		{"no change", 7, 7, 0},
		{"rise beyond 32 bits", math.MaxUint32 - 1, 1<<32 + 5, 7},
		{"wrap", math.MaxUint64 - 1, 5, 7},
		{"began again", math.MaxUint32 - 1, 5, 5},
		{"began again at 0", 1 << 40, 0, 0},
	} {
		if got := Rise(tc.before, tc.after); got != tc.want {
			t.Errorf("64 bits, %s: %d to %d is a rise of %d, want %d", tc.name, tc.before, tc.after, got, tc.want)
		}
	}
}
