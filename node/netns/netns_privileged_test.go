//go:build privileged

package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
)

// Every namespace is found once, also one that only a name refers to.
func TestFind(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	refer := func(path string, ns *testns.Namespace) {
		t.Helper()
		path = filepath.Join(root, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.FD()), path)); err != nil {
			t.Fatal(err)
		}
	}
	first, second := testns.New(t), testns.New(t)
	refer("proc/1/ns/net", first)
	refer("proc/20/ns/net", first)
	refer("run/netns/known", first)
	refer("run/docker/netns/named", second)
	if err := os.WriteFile(filepath.Join(root, "proc/1/comm"), []byte("systemd\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	list, err := Find(root)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range list {
		got = append(got, fmt.Sprintf("%s %d %s", n.Process, n.PID, strings.TrimPrefix(n.Path, root)))
	}
	want := []string{"systemd 1 /proc/1/ns/net", " 0 /run/docker/netns/named"}
	if !slices.Equal(got, want) || list[0].Inode == list[1].Inode {
		t.Errorf("found %q, want %q", got, want)
	}
}

// What is done in a namespace is done there, and the error is that of the function.
func TestDo(t *testing.T) {
	t.Parallel()
	there := testns.New(t)
	h, err := Open(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), there.FD()))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	var inode string
	done := errors.New("done")
	err = h.Do(func() error {
		inode, _ = os.Readlink("/proc/thread-self/ns/net")
		return done
	})
	want, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", there.FD()))
	if !errors.Is(err, done) || inode != want || want == "" {
		t.Errorf("in %q: %v; want %q", inode, err, want)
	}
}
