// Package budget decides how much memory a cache reserves for answers.
package budget

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/trackless-dns/trackless/internal/cgroup"
	"github.com/trackless-dns/trackless/plugin/cache/store"
)

const (
	// maxDefaultSize is the largest amount that caches without a size share, in bytes.
	maxDefaultSize = 32 << 20
	// minDefaultSize is the smallest amount that each of them gets, in bytes.
	minDefaultSize = 1 << 20
	// limitShare is the divisor that turns the memory limit into the amount to share.
	limitShare = 4
)

// Default returns the size in bytes of each of n caches for which the Corefile gives
// none. They share a quarter of the memory limit of the process's control group, and at
// most 32 MiB. The folder root has proc and sys.
func Default(root string, n int) int {
	size := maxDefaultSize
	if limit := cgroup.MemoryLimit(root); limit > 0 {
		size = int(min(limit/limitShare, maxDefaultSize))
	}
	return max(size/max(n, 1), minDefaultSize)
}

var errSize = errors.New("size is a number of bytes, such as 16777216, 16Mi or 16M")

// Parse reads a number of bytes, with the suffix k, M or G for powers of 1000 or Ki, Mi
// or Gi for powers of 1024, as in quantities of Kubernetes.
func Parse(s string) (int, error) {
	unit := 1
	for suffix, u := range map[string]int{"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "k": 1e3, "M": 1e6, "G": 1e9} {
		if digits, ok := strings.CutSuffix(s, suffix); ok {
			s, unit = digits, u
			break
		}
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > math.MaxInt/unit {
		return 0, errSize
	}
	if n *= unit; n < store.MinBytes || n > store.MaxBytes {
		return 0, fmt.Errorf("size must be between %d and %d bytes: %d", store.MinBytes, store.MaxBytes, n)
	}
	return n, nil
}
