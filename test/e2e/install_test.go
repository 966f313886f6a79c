//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	repository = "local.invalid/trackless"
	image      = repository + ":e2e"
	nextTag    = "e2e-next"
)

// nextImage gives the nodes the image under nextTag, too.
func nextImage(t *testing.T) {
	t.Helper()
	for _, node := range nodes {
		err := command(t.Context(), filepath.Join(lab.home, "bin/ctr"), "-a", containerdSocket(node), "-n", "k8s.io",
			"images", "tag", "--force", image, repository+":"+nextTag)
		if err != nil {
			t.Fatal(err)
		}
	}
}

// ofTheChart selects the pods of kustomize and the chart; ours select them, and those of
// the stock manifest.
const ofTheChart = "app.kubernetes.io/name=trackless"

var ours = []string{ofTheChart, "k8s-app=node-local-dns"}

// overlay renders one of deploy/kustomize with the image of this test.
func overlay(t *testing.T, name string) string {
	t.Helper()
	// kustomize takes relative paths only.
	dir, err := os.MkdirTemp("testdata", "kustomize-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	k := `apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../../../../deploy/kustomize/overlays/` + name + `]
images: [{name: ghcr.io/trackless-dns/trackless, newName: local.invalid/trackless, newTag: e2e}]
`
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(k), 0o644); err != nil {
		t.Fatal(err)
	}
	return lab.must(t, "kustomize", dir)
}

// less leaves out the objects of a kind.
func less(manifest, kind string) string {
	var kept []string
	for _, object := range strings.Split(manifest, "\n---\n") {
		if !strings.Contains(object, "\nkind: "+kind+"\n") {
			kept = append(kept, object)
		}
	}
	return strings.Join(kept, "\n---\n")
}

// apply applies a manifest, after the API server has found every field known
// and valid, and takes it away at the end of the test if it is still there.
func apply(t *testing.T, manifest string) {
	t.Helper()
	for _, args := range [][]string{
		{"apply", "-f", "-", "--dry-run=server", "--validate=strict"},
		{"apply", "-f", "-"},
	} {
		if out, err := lab.kubectlWith(t.Context(), manifest, args...); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	t.Cleanup(func() { remove(t, manifest) })
}

// remove deletes what apply applied.
func remove(t *testing.T, manifest string) {
	t.Helper()
	// The context of the test is over in its cleanup.
	ctx, cancel := testContext()
	defer cancel()
	if out, err := lab.kubectlWith(ctx, manifest, "delete", "-f", "-", "--ignore-not-found", "--timeout=90s"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	lab.podsGone(t, ours...)
}

// rolledOut waits until every pod of the DaemonSet is ready.
func rolledOut(t *testing.T, name string) {
	t.Helper()
	if out, err := lab.kubectl(t.Context(), "-n", namespace, "rollout", "status", "daemonset/"+name, "--timeout=2m"); err != nil {
		describe(t)
		t.Fatalf("%v\n%s", err, out)
	}
}

// describe logs what is to be known of pods that are not as they should be.
func describe(t *testing.T) {
	t.Helper()
	ctx, cancel := testContext()
	defer cancel()
	commands := [][]string{{"-n", namespace, "get", "pods", "-o", "wide"}}
	for _, pods := range ours {
		commands = append(commands,
			[]string{"-n", namespace, "describe", "pods", "-l", pods},
			[]string{"-n", namespace, "logs", "-l", pods, "--tail=40", "--prefix"})
	}
	for _, args := range commands {
		out, err := lab.kubectl(ctx, args...)
		t.Logf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// serves is what every installation must do for the pods of both nodes.
func serves(t *testing.T, listen ...string) {
	t.Helper()
	scraped(t, listen...) // which says also that queries are untracked by now
	resolves(t, listen...)
	for _, node := range nodes {
		untracked(t, node, listen...)
	}
}

func TestKustomizeClusterIP(t *testing.T) {
	resolves(t, clusterDNS)
	for _, node := range nodes {
		tracked(t, node, clusterDNS)
	}

	manifest := overlay(t, "cluster-ip")
	apply(t, manifest)
	rolledOut(t, "trackless")
	serves(t, clusterDNS)
	confined(t, "trackless")

	lab.must(t, "-n", namespace, "exec", tracklessPod(t, "n1"), "--", "trackless", "rules", "detach")
	tracked(t, "n1", clusterDNS)
	lab.must(t, "-n", namespace, "exec", tracklessPod(t, "n1"), "--", "trackless", "rules", "attach")
	serves(t, clusterDNS)

	remove(t, manifest)
	nothingLeft(t)
	resolves(t, clusterDNS)
	for _, node := range nodes {
		tracked(t, node, clusterDNS)
	}
}

// TestKustomizeLinkLocal asks an address that no Service owns: while Trackless
// is down the failover table sends queries to kube-dns.
func TestKustomizeLinkLocal(t *testing.T) {
	manifest := overlay(t, "link-local")
	apply(t, manifest)
	rolledOut(t, "trackless")
	serves(t, linkLocal)
	confined(t, "trackless")
	unbroken(t, linkLocal, true, func(t *testing.T) { kill(t, "n1", "trackless") })
	rolledOut(t, "trackless")
	serves(t, linkLocal)

	unbroken(t, linkLocal, false, func(t *testing.T) { remove(t, manifest) })
	resolves(t, linkLocal) // by the failover table
	for _, node := range nodes {
		lab.rulesRemove(t, node)
	}
	nothingLeft(t)
	resolves(t, clusterDNS)
}
