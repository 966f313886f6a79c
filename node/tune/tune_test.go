package tune

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/node/advice"
	"github.com/trackless-dns/trackless/node/measure"
)

// host is a host whose table is full, below a new root.
func host(t *testing.T) (root string, plan *Plan) {
	t.Helper()
	root = t.TempDir()
	for name, content := range map[string]string{
		"proc/sys/net/netfilter/nf_conntrack_max": "65536\n",
		HashsizeFile: "16384\n",
	} {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return root, New(&measure.Node{Measurements: advice.Measurements{Entries: 60000, Limit: 65536, Buckets: 16384}})
}

func noContainer(string) string { return "" }

// Every step is told, in its order, and Revert goes back.
func TestSteps(t *testing.T) {
	t.Parallel()
	root, plan := host(t)
	const limit = "net.netfilter.nf_conntrack_max"
	var done []Step
	tell := func(s Step) { done = append(done, s) }
	if err := plan.Apply(root, tell); err != nil {
		t.Fatal(err)
	}
	want := []Step{
		{ValueSet, "hashsize", "131072", "16384"}, {ValueSet, limit, "131072", "65536"},
		{Kind: FileWritten, Name: SysctlFile}, {Kind: FileWritten, Name: ModulesLoadFile}, {Kind: FileWritten, Name: ModprobeFile},
	}
	if !slices.Equal(done, want) {
		t.Errorf("applied %+v, want %+v", done, want)
	}
	done = nil
	if err := os.WriteFile(filepath.Join(root, "proc/sys/net/netfilter/nf_conntrack_max"), []byte("7\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Revert(root, noContainer, tell); err != nil {
		t.Fatal(err)
	}
	want = []Step{
		{ValueLeftAlone, limit, "7", "131072"}, {ValueRestored, "hashsize", "16384", "131072"},
		{Kind: FileRemoved, Name: SysctlFile}, {Kind: FileRemoved, Name: ModulesLoadFile}, {Kind: FileRemoved, Name: ModprobeFile},
	}
	if !slices.Equal(done, want) {
		t.Errorf("reverted %+v, want %+v", done, want)
	}
}

// An UnchangedError is returned only if nothing was changed.
func TestUnchanged(t *testing.T) {
	t.Parallel()
	root, plan := host(t)
	var unchanged *UnchangedError
	none := func(s Step) { t.Errorf("did %+v", s) }
	if err := Revert(root, noContainer, none); !errors.As(err, &unchanged) || !strings.Contains(err.Error(), "nothing was applied") {
		t.Errorf("nothing to revert: %v", err)
	}
	if err := os.Remove(filepath.Join(root, HashsizeFile)); err != nil {
		t.Fatal(err)
	}
	if err := plan.Apply(root, none); !errors.As(err, &unchanged) {
		t.Errorf("a value that cannot be read: %v", err)
	}
	root, plan = host(t)
	etc := filepath.Join(root, "etc")
	if err := errors.Join(os.Mkdir(etc, 0o755), os.Symlink("/nowhere/at/all", filepath.Join(etc, "modprobe.d"))); err != nil {
		t.Fatal(err)
	}
	err := plan.Apply(root, func(Step) {})
	if err == nil || errors.As(err, &unchanged) {
		t.Errorf("a file that cannot be written: %v", err)
	}
}

func TestRefusal(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		root    string
		env     map[string]string
		prepare func(limit string) error
		why     string
	}{
		{name: "in Kubernetes", root: "/", env: map[string]string{"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, why: "KUBERNETES_SERVICE_HOST"},
		{name: "in Podman", root: "/", env: map[string]string{"container": "podman"}, why: "variable container"},
		{name: "read-only", prepare: func(limit string) error { return os.Chmod(limit, 0o444) }, why: "read-only"},
		{name: "not there", prepare: os.Remove, why: "cannot be written"},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := test.root
			if root == "" {
				root, _ = host(t)
				if err := test.prepare(filepath.Join(root, "proc/sys/net/netfilter/nf_conntrack_max")); err != nil {
					t.Fatal(err)
				}
			}
			why := Refusal(root, func(name string) string { return test.env[name] })
			if !strings.Contains(why, test.why) {
				t.Fatalf("refusal %q, want %q", why, test.why)
			}
		})
	}
	root, _ := host(t)
	if why := Refusal(root, noContainer); why != "" {
		t.Errorf("on a host: %q", why)
	}
}
