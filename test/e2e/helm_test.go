//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func helm(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{
		"--net=/run/netns/k8-cp", filepath.Join(lab.home, "bin/helm"),
		"--kubeconfig=" + filepath.Join(lab.home, "run/admin.kubeconfig"), "--namespace=" + namespace,
	}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// install installs the chart with these values, or changes what is installed,
// and waits for the rollout.
func install(t *testing.T, values string) {
	t.Helper()
	out, err := helm(t.Context(), "upgrade", "--install", "trackless", "../../deploy/helm/trackless", "--wait", "--timeout=3m",
		"--set", "image.repository=local.invalid/trackless,image.tag=e2e", "--set", values)
	if err != nil {
		describe(t)
		t.Fatalf("helm upgrade: %v\n%s", err, out)
	}
	rolledOut(t, "trackless")
}

// uninstalled takes the chart away at the end of the test.
func uninstalled(t *testing.T) {
	t.Cleanup(func() {
		ctx, cancel := testContext()
		defer cancel()
		if out, err := helm(ctx, "uninstall", "trackless", "--ignore-not-found", "--wait"); err != nil {
			t.Errorf("helm uninstall: %v\n%s", err, out)
		}
	})
}

// TestHelm installs the chart for both addresses, with names outside the
// cluster asked elsewhere, changes it to the ClusterIP alone, and removes it.
func TestHelm(t *testing.T) {
	uninstalled(t)
	install(t, "mode=both,external.servers={172.31.77.1}")
	serves(t, linkLocal, clusterDNS)
	confined(t, "trackless")

	// The ConfigMap changes, not the pods: they load it themselves.
	install(t, "mode=cluster-ip,external.servers={172.31.77.1}")
	for i, node := range nodes {
		eventually(t, node+" has loaded the new Corefile", 3*time.Minute, func() error {
			page, err := lab.inClient(t.Context(), "n1", "get", fmt.Sprintf("http://172.31.77.1%d:9253/metrics", i+1))
			if err == nil && strings.Contains(page, fmt.Sprintf("coredns_notrack_attached{address=%q}", linkLocal)) {
				err = errors.New("it still listens on " + linkLocal)
			}
			return err
		})
	}
	serves(t, clusterDNS)

	unbroken(t, clusterDNS, false, func(t *testing.T) {
		if out, err := helm(t.Context(), "uninstall", "trackless", "--wait", "--timeout=2m"); err != nil {
			t.Fatalf("helm uninstall: %v\n%s", err, out)
		}
	})
	for _, node := range nodes {
		lab.rulesRemove(t, node) // the failover table of the link-local address
	}
	nothingLeft(t)
}

// TestCilium runs what the overlay for Cilium makes of the pod, without
// Cilium: an ordinary pod that answers on its own address.
func TestCilium(t *testing.T) {
	apply(t, less(overlay(t, "cilium"), "CiliumLocalRedirectPolicy"))
	rolledOut(t, "trackless")
	for _, node := range nodes {
		ip := lab.must(t, "-n", namespace, "get", "pod", tracklessPod(t, node), "-o", "jsonpath={.status.podIP}")
		resolves(t, ip)
	}
}
