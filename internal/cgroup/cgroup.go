// Package cgroup reads what the control groups of this process bound.
package cgroup

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// MemoryLimit is the smallest memory limit of the control groups that the
// process is in, in octets, or 0 if there is none. root is where proc and sys are. It reads version 2
// (Documentation/admin-guide/cgroup-v2.rst, memory.max) and version 1
// (cgroup-v1/memory.rst, memory.limit_in_bytes).
func MemoryLimit(root string) int64 {
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
