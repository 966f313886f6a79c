//go:build privileged

package who

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/kubeapi/names"
)

// Without the API and without a socket of the runtime, the namespaces have the addresses,
// the control groups the UIDs, and kubelet's folders of logs the names.
func TestNamesFromNamespaces(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	put := func(path, content string) {
		t.Helper()
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	refer := func(path string, ns *testns.Namespace) {
		t.Helper()
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.FD()), path); err != nil {
			t.Fatal(err)
		}
	}
	const named, unnamed = "11111111-2222-3333-4444-555555555555", "3a7f5b1e-1c2d-4e5f-8a9b-0c1d2e3f4a5b"
	for i, p := range []struct{ path, cgroup string }{
		{"proc/300", "5:cpu:/kubepods/besteffort/pod" + named + "/aa\n"},
		{"proc/301", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod3a7f5b1e_1c2d_4e5f_8a9b_0c1d2e3f4a5b.slice/cri-containerd-0.scope\n"},
		{"proc/302", "0::/system.slice/postgres.service\n"},
		{"run/netns/lab", ""},
	} {
		ns := testns.New(t)
		ns.Do(func() {
			testns.Run(t, "ip", "link", "set", "lo", "up")
			testns.Run(t, "ip", "addr", "add", fmt.Sprintf("10.244.0.%d/32", 10+i), "dev", "lo")
			testns.Run(t, "ip", "addr", "add", fmt.Sprintf("169.254.0.%d/32", 10+i), "dev", "lo")
		})
		if p.cgroup == "" {
			refer(p.path, ns)
			continue
		}
		refer(p.path+"/ns/net", ns)
		put(p.path+"/cgroup", p.cgroup)
		put(p.path+"/comm", "postgres\n")
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(root, "proc/1/ns"), 0o755), os.Symlink("/proc/self/ns/net", filepath.Join(root, "proc/1/ns/net"))); err != nil {
		t.Fatal(err)
	}
	put("var/log/pods/shop_cart-1_"+named+"/cart/0.log", "")
	put("var/log/pods/rotated", "")
	f := Node{Root: root, inCluster: outside}.Find(t.Context())
	if f.Pods != FromNode || len(f.Notes) != 0 {
		t.Errorf("pods from %q, notes %q", f.Pods, f.Notes)
	}
	for _, a := range names.InterfaceAddresses() {
		if got := f.Book.Owner(a); got.Kind != names.Node {
			t.Errorf("our own address %s is of %+v", a, got)
		}
	}
	for a, want := range map[string]names.Owner{
		"10.244.0.10":  {Kind: names.Pod, Namespace: "shop", Name: "cart-1"},
		"10.244.0.11":  {Kind: names.Pod, Name: unnamed},
		"10.244.0.12":  {Kind: names.Process, Name: "postgres (302)"},
		"10.244.0.13":  {Kind: names.Process, Name: "netns lab"},
		"169.254.0.10": {}, // every namespace may have it
	} {
		if got := f.Book.Owner(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s is of %+v, want %+v", a, got, want)
		}
	}
}
