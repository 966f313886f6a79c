package cache

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/trackless-dns/trackless/plugin/cache/store"
)

const (
	// maxDefaultSize is the memory that caches without a size share at most.
	maxDefaultSize = 32 << 20
	// minDefaultSize is what each of them gets at least.
	minDefaultSize = 1 << 20
	// limitShare is the part of the memory limit that is for answers.
	limitShare = 4
)

// defaultSize is the memory budget in octets of each of n caches without one:
// a quarter of the memory limit of the process's control group and at
// most 32 MiB, divided evenly. root is where proc and sys are.
func defaultSize(root string, n int) int {
	size := maxDefaultSize
	if limit := memoryLimit(root); limit > 0 {
		size = int(min(limit/limitShare, maxDefaultSize))
	}
	return max(size/max(n, 1), minDefaultSize)
}

// memoryLimit is the smallest memory limit of the control groups that the
// process is in, in octets, or 0 if there is none. It reads version 2
// (Documentation/admin-guide/cgroup-v2.rst, memory.max) and version 1
// (cgroup-v1/memory.rst, memory.limit_in_bytes).
func memoryLimit(root string) int64 {
	groups, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return 0
	}
	limit := int64(0)
	for line := range strings.Lines(string(groups)) {
		// hierarchy:controllers:path; version 2 has no controllers.
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		mount, file := "sys/fs/cgroup", "memory.max"
		if parts[1] != "" {
			if !strings.Contains(","+parts[1]+",", ",memory,") {
				continue
			}
			mount, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		}
		// Inside a container the mount may start at the container's own group.
		for dir := parts[2]; ; dir = filepath.Dir(dir) {
			if l := readLimit(filepath.Join(root, mount, dir, file)); l > 0 && (limit == 0 || l < limit) {
				limit = l
			}
			if dir == "/" || dir == "." {
				break
			}
		}
	}
	return limit
}

// readLimit reads a limit in octets, 0 for none. Version 1 says none by a
// number near the largest.
func readLimit(path string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n > math.MaxInt64/2 {
		return 0
	}
	return n
}

var errSize = errors.New("size is a number of bytes, such as 16777216, 16Mi or 16M")

// parseSize reads a number of octets, with the suffix k, M or G for powers of 1000 or
// Ki, Mi or Gi for powers of 1024, as Kubernetes writes quantities.
func parseSize(s string) (int, error) {
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
