package server

import (
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"testing"
)

func TestMemoryLimit(t *testing.T) {
	for _, tc := range []struct{ allowed, want int64 }{
		{32 << 20, 16 << 20},
		{64 << 20, 32 << 20},
		{128 << 20, 80 << 20},
		{1 << 30, 1<<30 - 1<<30/10 - 32<<20},
	} {
		if got := memoryLimit(tc.allowed); got != tc.want {
			t.Errorf("of %d: %d, want %d", tc.allowed, got, tc.want)
		}
	}
}

func TestTheControlGroupBoundsTheHeap(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const allowed = 8 << 30 // no burden for the tests that follow
	for _, tc := range []struct {
		name, env, limit string
		want             int64
	}{
		{"no limit", "", "max", 1 << 50},
		{"a limit", "", strconv.Itoa(allowed), memoryLimit(allowed)},
		{"GOMEMLIMIT wins", "4GiB", strconv.Itoa(allowed), 1 << 50},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("GOMEMLIMIT", tc.env)
			before := debug.SetMemoryLimit(1 << 50)
			defer debug.SetMemoryLimit(before)
			write("proc/self/cgroup", "0::/\n")
			write("sys/fs/cgroup/memory.max", tc.limit+"\n")
			respectMemoryLimit(root)
			if got := debug.SetMemoryLimit(-1); got != tc.want {
				t.Errorf("the heap may take %d, want %d", got, tc.want)
			}
		})
	}
}
