//go:build e2e

package e2e

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"
)

func helm(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{
		"--net=/run/netns/k8-cp", filepath.Join(lab.home, "bin/helm"),
		"--kubeconfig=" + filepath.Join(lab.home, "run/admin.kubeconfig"), "--namespace=" + namespace,
	}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestHelm installs the chart for both addresses, with names outside the
// cluster asked elsewhere, changes it to the ClusterIP alone, and removes it.
func TestHelm(t *testing.T) {
	const chart = "../../deploy/helm/trackless"
	set := []string{"--set", "image.repository=local.invalid/trackless,image.tag=e2e,external.servers={172.31.77.1}"}
	must := func(args ...string) {
		t.Helper()
		if out, err := helm(t.Context(), args...); err != nil {
			describe(t)
			t.Fatalf("helm %v: %v\n%s", args, err, out)
		}
	}
	t.Cleanup(func() {
		ctx, cancel := testContext()
		defer cancel()
		if out, err := helm(ctx, "uninstall", "trackless", "--ignore-not-found", "--wait"); err != nil {
			t.Errorf("helm uninstall: %v\n%s", err, out)
		}
	})

	must(append([]string{"install", "trackless", chart, "--wait", "--timeout=3m", "--set", "mode=both"}, set...)...)
	rolledOut(t, "trackless")
	serves(t, linkLocal, clusterDNS)
	confined(t, "trackless")

	// The ConfigMap changes, not the pods: they load it themselves.
	must(append([]string{"upgrade", "trackless", chart, "--set", "mode=cluster-ip"}, set...)...)
	serves(t, clusterDNS)

	unbroken(t, clusterDNS, false, func(*testing.T) {
		must("uninstall", "trackless", "--wait", "--timeout=2m")
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
