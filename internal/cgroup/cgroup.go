// Package cgroup reads what the control groups of this process bound.
package cgroup

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// MemoryLimit is the smallest memory limit of the control groups that the
// process is in, in bytes, or 0 if there is none. root is where proc and sys are. It reads version 2
// (Documentation/admin-guide/cgroup-v2.rst, memory.max) and version 1
// (cgroup-v1/memory.rst, memory.limit_in_bytes).
func MemoryLimit(root string) int64 {
	limit := int64(0)
	for _, g := range groups(root, "memory") {
		file := "memory.limit_in_bytes"
		if g.v2 {
			file = "memory.max"
		}
		if l := readLimit(filepath.Join(g.path, file)); l > 0 && (limit == 0 || l < limit) {
			limit = l
		}
	}
	return limit
}

// group is a control group that the process is in.
type group struct {
	path string
	v2   bool
}

// groups lists those in which a controller may bound the process, the innermost
// first. Some of them may not be there.
func groups(root, controller string) (out []group) {
	text, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		// hierarchy:controllers:path; version 2 has no controllers.
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		mount, v2 := "sys/fs/cgroup", parts[1] == ""
		if !v2 {
			if !slices.Contains(strings.Split(parts[1], ","), controller) {
				continue
			}
			mount = filepath.Join(mount, controller)
		}
		// Inside a container the mount may start at the container's own group.
		for dir := parts[2]; ; dir = filepath.Dir(dir) {
			out = append(out, group{filepath.Join(root, mount, dir), v2})
			if dir == "/" || dir == "." {
				break
			}
		}
	}
	return out
}

// readLimit reads a limit in bytes, 0 for none. Version 1 says none by a
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
