package server

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

func TestTheControlGroupBoundsTheThreads(t *testing.T) {
	for _, tc := range []struct {
		name, env, limit string
		want             int
	}{
		{"no limit", "", "max 100000", 3},
		{"a tenth of a processor", "", "10000 100000", 1},
		{"one processor", "", "100000 100000", 1},
		{"more than one", "", "150000 100000", 3},
		{"GOMAXPROCS wins", "3", "10000 100000", 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("GOMAXPROCS", tc.env)
			defer runtime.SetDefaultGOMAXPROCS()
			runtime.GOMAXPROCS(3)
			root := t.TempDir()
			for name, text := range map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": tc.limit + "\n"} {
				path := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			respectCPULimit(root)
			if got := runtime.GOMAXPROCS(0); got != tc.want {
				t.Errorf("%d threads at a time, want %d", got, tc.want)
			}
		})
	}
}
