package cgroup

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMemoryLimit(t *testing.T) {
	const groups = "proc/self/cgroup"
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  int64
	}{
		{"no control groups", nil, 0},
		{"no limit", map[string]string{groups: "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 0},
		{"version 2", map[string]string{groups: "0::/\n", "sys/fs/cgroup/memory.max": "67108864\n"}, 64 << 20},
		{"the smallest counts", map[string]string{
			groups: "0::/pod/container\n", "sys/fs/cgroup/pod/container/memory.max": "16777216\n", "sys/fs/cgroup/pod/memory.max": "33554432\n",
		}, 16 << 20},
		{"version 1", map[string]string{
			groups: "5:cpu,cpuacct:/x\n4:hugetlb,memory:/pod\n", "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": "33554432\n",
		}, 32 << 20},
		{"version 1 in a container, whose mount starts at its own group", map[string]string{
			groups: "4:memory:/kubepods/pod1/c1\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "33554432\n",
		}, 32 << 20},
		{"version 1 without limit", map[string]string{
			groups: "4:memory:/pod\n", "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": "9223372036854771712\n",
		}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := MemoryLimit(rootWith(t, tc.files)); got != tc.want {
				t.Errorf("%d bytes, want %d", got, tc.want)
			}
		})
	}
}

// rootWith makes a folder with the files, by their paths in it.
func rootWith(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}
