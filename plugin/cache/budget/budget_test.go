package budget

import (
	"os"
	"path/filepath"
	"testing"
)

func TestDefaultSize(t *testing.T) {
	const groups = "proc/self/cgroup"
	for _, tc := range []struct {
		name   string
		files  map[string]string
		caches int
		want   int
	}{
		{"no control groups", nil, 1, 32 << 20},
		{"no limit", map[string]string{groups: "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 1, 32 << 20},
		{"limit of the container", map[string]string{groups: "0::/\n", "sys/fs/cgroup/memory.max": "67108864\n"}, 1, 16 << 20},
		{"large limit", map[string]string{groups: "0::/\n", "sys/fs/cgroup/memory.max": "1073741824\n"}, 1, 32 << 20},
		{"limit of a parent", map[string]string{
			groups: "0::/pod/container\n", "sys/fs/cgroup/pod/container/memory.max": "max\n", "sys/fs/cgroup/pod/memory.max": "33554432\n",
		}, 1, 8 << 20},
		{"smallest limit counts", map[string]string{
			groups: "0::/pod/container\n", "sys/fs/cgroup/pod/container/memory.max": "16777216\n", "sys/fs/cgroup/pod/memory.max": "33554432\n",
		}, 1, 4 << 20},
		{"version 1", map[string]string{
			groups: "5:cpu,cpuacct:/x\n4:hugetlb,memory:/pod\n", "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": "33554432\n",
		}, 1, 8 << 20},
		{"version 1 without limit", map[string]string{
			groups: "4:memory:/pod\n", "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": "9223372036854771712\n",
		}, 1, 32 << 20},
		{"shared by four", nil, 4, 8 << 20},
		{"never less than a MiB", map[string]string{groups: "0::/\n", "sys/fs/cgroup/memory.max": "8388608\n"}, 4, 1 << 20},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range tc.files {
				path := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := Default(root, tc.caches); got != tc.want {
				t.Errorf("%d bytes, want %d", got, tc.want)
			}
		})
	}
}
