package netns

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPodUID(t *testing.T) {
	t.Parallel()
	const uid = "11111111-2222-3333-4444-555555555555"
	for _, test := range []struct{ name, cgroup, want string }{
		{"cgroupfs driver", "5:cpu:/kubepods/besteffort/pod" + uid + "/aa\n", uid},
		{"systemd driver", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice/cri-containerd-0.scope\n", uid},
		{"no pod", "0::/init.scope\n", ""},
		{"a service named like one", "0::/system.slice/podman.service\n", ""},
	} {
		if got := podUID(test.cgroup); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// A file that is no namespace is refused before anything is done.
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, says := range map[string]string{file: "is no namespace", "nowhere": "/run/netns/nowhere", "999999999": "ip netns list"} {
		if _, err := Open(name); err == nil || !strings.Contains(err.Error(), says) && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Open(%q): %v", name, err)
		}
	}
}
