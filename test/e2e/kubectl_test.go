//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// findingWithin is how long a finding of all nodes may take.
const findingWithin = 30 * time.Second

// plugin is the kubectl plugin, built for this test.
type plugin struct{ path string }

func newPlugin(t *testing.T) plugin {
	t.Helper()
	p := plugin{filepath.Join(t.TempDir(), "kubectl-trackless")}
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", p.path, ".")
	build.Dir = "../../deploy/kubectl-trackless"
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v\n%s", err, out)
	}
	return p
}

// command is the plugin as the administrator's, in the control plane's namespace.
func (p plugin) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{
		"--net=/run/netns/k8-cp", p.path, "--kubeconfig=" + filepath.Join(lab.home, "run/admin.kubeconfig"), "--image=" + image,
	}, args...)...)
}

// run returns what it wrote, and its exit status.
func (p plugin) run(t *testing.T, args ...string) (status int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	cmd := p.command(t.Context(), args...)
	cmd.Stdout, cmd.Stderr = &o, &e
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), o.String(), e.String()
}

// nodeAnswer is what -o json says of a node.
type nodeAnswer struct {
	Node     string
	DebugPod bool `json:"debug_pod"`
	Error    string
	Report   json.RawMessage
}

// asks runs the plugin with -o json, and fails unless each node answered in time.
func (p plugin) asks(t *testing.T, debugPods bool, args ...string) {
	t.Helper()
	began := time.Now()
	_, out, errs := p.run(t, append(args, "--all-nodes", "-o", "json")...)
	took := time.Since(began)
	var got struct{ Nodes []nodeAnswer }
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%s: %v\n%s%s", args, err, out, errs)
	}
	if len(got.Nodes) != len(nodes) {
		t.Errorf("%s: %d nodes answered, want %d\n%s", args, len(got.Nodes), len(nodes), out)
	}
	for _, n := range got.Nodes {
		if n.Error != "" || len(n.Report) == 0 || n.DebugPod != debugPods {
			t.Errorf("%s on %s: debug pod %t, want %t; error %q", args, n.Node, n.DebugPod, debugPods, n.Error)
		}
	}
	t.Logf("%s: %s", args, took.Round(time.Millisecond))
	if took > findingWithin {
		t.Errorf("%s took %s, want at most %s", args, took, findingWithin)
	}
}

// noDebugPods waits until the last one is gone.
func noDebugPods(t *testing.T) {
	t.Helper()
	lab.podsGone(t, "app.kubernetes.io/name=kubectl-trackless")
}

// TestKubectlPlugin asks both nodes without Trackless, through debug pods, and with
// it, through its pods. Nothing is left behind, also after Ctrl-C.
func TestKubectlPlugin(t *testing.T) {
	p := newPlugin(t)
	t.Cleanup(func() { noDebugPods(t) })
	uninstalled(t)
	verbs := [][]string{{"doctor"}, {"stats"}, {"top"}, {"rules", "show"}}
	for _, verb := range verbs {
		p.asks(t, true, verb...)
	}
	noDebugPods(t)

	t.Run("snapshots", func(t *testing.T) {
		before, after := filepath.Join(t.TempDir(), "before"), filepath.Join(t.TempDir(), "after")
		p.asks(t, true, "snapshot", before, "--window", "5s")
		p.asks(t, true, "snapshot", after, "--window", "5s")
		if status, out, errs := p.run(t, "compare", before, after); status != 0 || strings.Count(out, "\nn") < len(nodes) {
			t.Errorf("status %d\n%s%s", status, out, errs)
		}
		noDebugPods(t)
	})
	t.Run("interrupted", func(t *testing.T) {
		cmd := p.command(t.Context(), "doctor", "--all-nodes", "--interval", "1m")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a debug pod", findingWithin, func() error {
			return exists("app.kubernetes.io/name=kubectl-trackless")
		})
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 3 {
			t.Errorf("%v, want exit status 3", err)
		}
		noDebugPods(t)
	})
	t.Run("without rights", func(t *testing.T) {
		status, _, errs := p.run(t, "doctor", "--all-nodes", "--as", "nobody")
		if status != 3 || !strings.Contains(errs, "ask the administrator of the cluster for a ClusterRole with the verb list on the resource nodes") {
			t.Errorf("status %d, %s", status, errs)
		}
	})
	t.Run("no such image", func(t *testing.T) {
		_, out, errs := p.run(t, "doctor", "--node", nodes[0], "--image", "local.invalid/nothing:1")
		if !strings.Contains(out, "cannot pull the image local.invalid/nothing:1") {
			t.Errorf("%s%s", out, errs)
		}
		noDebugPods(t)
	})

	install(t, "mode=cluster-ip")
	for _, verb := range append(verbs, []string{"dns", "top", "--interval", "2s"}) {
		p.asks(t, false, verb...)
	}
	p.asks(t, true, "doctor", "--via", "pod")
	noDebugPods(t)
}

// exists returns an error while no pod has the label.
func exists(label string) error {
	ctx, cancel := testContext()
	defer cancel()
	out, err := lab.kubectl(ctx, "-n", namespace, "get", "pods", "-l", label, "-o", "name")
	if err == nil && out == "" {
		err = errors.New("there is none")
	}
	return err
}
