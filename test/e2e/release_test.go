//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// releaseFolder is what `make release` writes, made once for all tests.
func releaseFolder(t *testing.T) string {
	t.Helper()
	folder := filepath.Join(lab.home, "run/release")
	if lab.released {
		return folder
	}
	// DIRTY: a test is also run before what it tests is committed.
	build := exec.CommandContext(t.Context(), "make", "-C", "../..", "release", "DIRTY=1", "RELEASE_DIR="+folder, "RELEASE_ARCHS="+runtime.GOARCH, "PLUGIN_PLATFORMS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("make release: %v\n%s", err, out)
	}
	lab.released = true
	return folder
}

// releaseOnNodes gives the nodes the image of the release folder, as a registry would,
// and returns a manifest of the folder with the version and the digest that it asks
// for: NAME:VERSION@DIGEST.
func releaseOnNodes(t *testing.T) (folder, manifest, version, digest string) {
	t.Helper()
	folder = releaseFolder(t)
	text, err := os.ReadFile(filepath.Join(folder, "trackless-cluster-ip.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	manifest = string(text)
	_, pinned, found := strings.Cut(manifest, " image: ")
	pinned, _, _ = strings.Cut(pinned, "\n")
	name, digest, hasDigest := strings.Cut(pinned, "@")
	_, version, hasTag := strings.Cut(name, ":")
	if !found || !hasDigest || !hasTag {
		t.Fatalf("the manifest's image is %q, want NAME:VERSION@DIGEST", pinned)
	}
	for _, node := range nodes {
		if err := command(t.Context(), filepath.Join(lab.home, "bin/ctr"), "-a", containerdSocket(node), "-n", "k8s.io",
			"images", "import", filepath.Join(folder, "trackless-"+version+"-image.tar")); err != nil {
			t.Fatal(err)
		}
	}
	return folder, manifest, version, digest
}

// TestRelease installs from the folder that `make release` writes, as
// docs/install.md says, on nodes that reach no registry: nothing else of the
// sources is used.
func TestRelease(t *testing.T) {
	folder, manifest, version, digest := releaseOnNodes(t)

	apply(t, manifest) // kubectl apply -f trackless-cluster-ip.yaml
	rolledOut(t, "trackless")
	serves(t, clusterDNS)
	if got := lab.must(t, "-n", namespace, "exec", tracklessPod(t, "n1"), "--", "trackless", "version"); !strings.HasPrefix(got, "trackless "+version+" (commit ") {
		t.Errorf("the pod runs %q, want version %s", got, version)
	}
	if got := lab.must(t, "-n", namespace, "get", "pods", "-l", ours[0], "-o", "jsonpath={.items[*].status.containerStatuses[*].imageID}"); !strings.Contains(got, digest) {
		t.Errorf("the pods run %s, want %s", got, digest)
	}
	remove(t, manifest)
	nothingLeft(t)

	// The packed chart is the one of the sources.
	chart := filepath.Join(folder, "trackless-"+version+".tgz")
	packed, err := helm(t.Context(), "template", "trackless", chart, "--namespace", namespace)
	if err != nil {
		t.Fatalf("%v\n%s", err, packed)
	}
	sources, err := helm(t.Context(), "template", "trackless", "../../deploy/helm/trackless", "--namespace", namespace)
	if err != nil {
		t.Fatalf("%v\n%s", err, sources)
	}
	if packed != sources {
		t.Error("the packed chart renders other manifests than that of the sources")
	}
}
