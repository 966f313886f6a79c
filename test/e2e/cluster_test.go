//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/internal/thread"
)

var nodes = []string{"n1", "n2"} // kube-proxy in nftables and in iptables mode

const (
	clusterDNS = "10.96.0.10"
	linkLocal  = "169.254.20.10"
	namespace  = "kube-system"
)

// cluster is the one that cluster/up.sh started.
type cluster struct {
	scripts string // the directory with up.sh
	home    string // the directory with the binaries
	program string // trackless, as it is in the image

	released bool // releaseFolder was called
}

// containerdSocket is where the containerd of a node listens.
func containerdSocket(node string) string { return "/run/k8-" + node + "/containerd.sock" }

func (c *cluster) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := command(ctx, filepath.Join(c.scripts, "down.sh")); err != nil {
		fmt.Println(err)
	}
}

// kubectl runs it as the administrator, in the control plane's namespace.
func (c *cluster) kubectl(ctx context.Context, args ...string) (string, error) {
	return c.kubectlWith(ctx, "", args...)
}

func (c *cluster) kubectlWith(ctx context.Context, stdin string, args ...string) (string, error) {
	return c.kubectlFrom(ctx, strings.NewReader(stdin), args...)
}

func (c *cluster) kubectlFrom(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{
		"--net=/run/netns/k8-cp", filepath.Join(c.home, "bin/kubectl"),
		"--kubeconfig=" + filepath.Join(c.home, "run/admin.kubeconfig"),
	}, args...)...)
	var out, diag bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &diag
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(diag.String()))
	}
	return out.String(), nil
}

// must runs kubectl and fails the test if it does.
func (c *cluster) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.kubectl(t.Context(), args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// inside runs fn in a network namespace of the cluster.
func inside(namespace string, fn func() error) error {
	return thread.Elsewhere(func() error {
		ns, err := netns.GetFromName(namespace)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			return err
		}
		return fn()
	})
}

// inNode runs a program in the network namespace of a node.
func (c *cluster) inNode(t *testing.T, node string, args ...string) string {
	t.Helper()
	out, err := c.runInNode(t.Context(), node, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

func (c *cluster) runInNode(ctx context.Context, node string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "nsenter", append([]string{"--net=/run/netns/k8-" + node}, args...)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("on %s: %s: %w", node, strings.Join(args, " "), err)
	}
	return string(out), err
}

// pod returns the running pod with the label on a node, or "".
func (c *cluster) pod(ctx context.Context, ns, label, node string) (string, error) {
	out, err := c.kubectl(ctx, "-n", ns, "get", "pods", "-l", label, "--field-selector", "status.phase=Running,spec.nodeName="+node,
		"-o", `go-template={{range .items}}{{if not .metadata.deletionTimestamp}}{{.metadata.name}}{{"\n"}}{{end}}{{end}}`)
	if err != nil {
		return "", err
	}
	name, _, _ := strings.Cut(out, "\n")
	return name, nil
}

// inClient runs the client in the pod on a node.
func (c *cluster) inClient(ctx context.Context, node string, args ...string) (string, error) {
	return c.inClientFrom(ctx, strings.NewReader(""), node, args...)
}

func (c *cluster) inClientFrom(ctx context.Context, stdin io.Reader, node string, args ...string) (string, error) {
	name, err := c.pod(ctx, "default", "app=client", node)
	if err != nil {
		return "", err
	}
	return c.kubectlFrom(ctx, stdin, append([]string{"exec", "-i", name, "--", "/client"}, args...)...)
}

// answer is a line of `client ask`.
type answer struct {
	Name    string
	Rcode   string
	Records []string
}

func (c *cluster) ask(ctx context.Context, node, server, proto string, names ...string) ([]answer, error) {
	out, err := c.inClient(ctx, node, append([]string{"ask", "-server", server, "-proto", proto}, names...)...)
	if err != nil {
		return nil, err
	}
	var answers []answer
	for d := json.NewDecoder(strings.NewReader(out)); d.More(); {
		var a answer
		if err := d.Decode(&a); err != nil {
			return nil, err
		}
		answers = append(answers, a)
	}
	return answers, nil
}

// load is what `client load` prints.
type load struct {
	Sent, Answered, Lost, Failed int
	GapMS                        int `json:"gap_ms"`
	Errors                       map[string]int
	FailedAt                     []string `json:"failed_at"`
}

// startLoad asks in the background until the returned function is called,
// which gives the result.
func (c *cluster) startLoad(t *testing.T, node string, args ...string) func() load {
	t.Helper()
	type outcome struct {
		out string
		err error
	}
	done := make(chan outcome, 1)
	// The load ends when its standard input does.
	r, w := io.Pipe()
	go func() {
		out, err := c.inClientFrom(t.Context(), r, node, append([]string{"load"}, args...)...)
		done <- outcome{out, err}
	}()
	return func() load {
		t.Helper()
		w.Close()
		o := <-done
		if o.err != nil {
			t.Fatal(o.err)
		}
		var l load
		if err := json.Unmarshal([]byte(o.out), &l); err != nil {
			t.Fatalf("load on %s: %v: %s", node, err, o.out)
		}
		return l
	}
}

// containerPID returns the process of the running container of that name on a
// node, as this machine numbers it; 0 if there is none.
func (c *cluster) containerPID(t *testing.T, node, name string) int {
	t.Helper()
	ctr := func(args ...string) string {
		out, err := exec.CommandContext(t.Context(), filepath.Join(c.home, "bin/ctr"),
			append([]string{"-a", containerdSocket(node), "-n", "k8s.io"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("ctr %v on %s: %v\n%s", args, node, err, out)
		}
		return string(out)
	}
	ids := ctr("containers", "ls", "-q", `labels."io.kubernetes.container.name"==`+name)
	for line := range strings.Lines(ctr("tasks", "ls")) {
		if f := strings.Fields(line); len(f) == 3 && f[2] == "RUNNING" && strings.Contains(ids, f[0]) {
			pid, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	return 0
}

// eventually repeats what may fail at first.
func eventually(t *testing.T, what string, within time.Duration, f func() error) {
	t.Helper()
	testwait.Until(t, within, what, f)
}

// podsGone waits until none of the pods is left. Cleanups may call it.
func (c *cluster) podsGone(t *testing.T, selectors ...string) {
	t.Helper()
	ctx, cancel := testContext()
	defer cancel()
	for _, pods := range selectors {
		if out, err := c.kubectl(ctx, "-n", namespace, "wait", "--for=delete", "pods", "-l", pods, "--timeout=90s"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// rulesRemove runs `trackless rules remove` on the node as docs/uninstall.md
// says, after the last Trackless is gone. Cleanups may call it.
func (c *cluster) rulesRemove(t *testing.T, node string) {
	t.Helper()
	c.podsGone(t, ours...)
	ctx, cancel := testContext()
	defer cancel()
	kubectl := func(args ...string) string {
		t.Helper()
		out, err := c.kubectl(ctx, append([]string{"-n", namespace}, args...)...)
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return out
	}
	kubectl("debug", "node/"+node, "--profile=netadmin", "--image="+image, "--container=remove", "--", "/trackless", "rules", "remove")
	out := kubectl("get", "pods", "--field-selector=spec.nodeName="+node, "-o", "name")
	i := strings.Index(out, "pod/node-debugger-")
	if i < 0 {
		t.Fatalf("no debugging pod among:\n%s", out)
	}
	pod, _, _ := strings.Cut(out[i:], "\n")
	if out, err := c.kubectl(ctx, "-n", namespace, "wait", "--for=jsonpath={.status.phase}=Succeeded", pod, "--timeout=60s"); err != nil {
		t.Errorf("%v\n%s%s", err, out, kubectl("logs", pod))
	}
	kubectl("delete", pod, "--now")
}
