//go:build privileged

package table

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/node/netns"
)

func TestConntrackStatsOfAllNamespaces(t *testing.T) {
	t.Parallel()
	ns := testns.New(t)
	c, err := conntrack.Dial(&conntrack.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for i, to := range []string{"10.96.0.10:53", "[fd00::a]:53", "192.0.2.80:443", "192.0.2.81:443"} {
		dst := netip.MustParseAddrPort(to)
		src := netip.MustParseAddr("10.244.0.11")
		if dst.Addr().Is6() {
			src = netip.MustParseAddr("fd00::11")
		}
		e := &conntrack.Entry{Timeout: 10 * time.Minute}
		e.Original = conntrack.Tuple{Src: src, Dst: dst.Addr(), SrcPort: uint16(4000 + i), DstPort: dst.Port(), Proto: conntrack.UDP}
		e.Reply = e.Original.Mirror()
		if err := c.Create(e); err != nil {
			t.Fatal(err)
		}
	}
	// A process has to be in the namespace, or a name refer to it; this thread
	// is neither. Its own root has both.
	root := t.TempDir()
	for dir, files := range map[string]map[string]string{
		"proc/1":   {"comm": "systemd\n", "cgroup": "0::/init.scope\n"},
		"proc/200": {"comm": "coredns\n", "cgroup": "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod3a7f5b1e_1c2d_4e5f_8a9b_0c1d2e3f4a5b.slice/cri-containerd-0.scope\n"},
		"proc/300": {"comm": "pause\n", "cgroup": "5:cpu:/kubepods/besteffort/pod11111111-2222-3333-4444-555555555555/aa\n"},
	} {
		for name, content := range files {
			path := filepath.Join(root, dir, name)
			if err := os.MkdirAll(filepath.Join(root, dir, "ns"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	other := testns.New(t)
	for path, fd := range map[string]int{"proc/1/ns/net": other.FD(), "proc/200/ns/net": ns.FD(), "proc/300/ns/net": ns.FD(), "run/netns/named": other.FD()} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), filepath.Join(root, path)); err != nil {
			t.Fatal(err)
		}
	}
	found, err := netns.Find(root)
	if err != nil {
		t.Fatal(err)
	}
	list := make([]namespaceReport, len(found))
	for i := range found {
		list[i].Namespace = found[i]
	}
	if len(list) != 2 || list[0].Process != "systemd" || list[1].Process != "coredns" || list[1].PodUID != "3a7f5b1e-1c2d-4e5f-8a9b-0c1d2e3f4a5b" {
		t.Fatalf("namespaces %+v", list)
	}
	for i, want := range []uint64{0, 4} {
		if err := countNamespace(&list[i], conntrack.Filter{DNS: true}); err != nil {
			t.Fatal(err)
		}
		if list[i].Entries != want || list[i].DNS != want/2 || list[i].Selected != want/2 || list[i].Limit == 0 {
			t.Errorf("%+v, want %d entries, half of them DNS", list[i], want)
		}
	}
	var b bytes.Buffer
	if err := writeNamespaces(&b, list); err != nil || !strings.Contains(b.String(), "coredns (200)") {
		t.Errorf("%v\n%s", err, b.String())
	}
}
