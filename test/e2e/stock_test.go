//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// stockImage is the line that changes.
var stockImage = regexp.MustCompile(`(?m)^(\s+image: ).*k8s-dns-node-cache:.*$`)

// stock returns Kubernetes' own nodelocaldns.yaml, from its Go module, with
// the image replaced and the variables that its installation replaces.
func stock(t *testing.T, image string) string {
	t.Helper()
	cmd := exec.Command("go", "mod", "download", "-json", "k8s.io/kubernetes")
	cmd.Dir = "cluster/hyper" // whose go.mod says which version
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go mod download k8s.io/kubernetes: %v\n%s", err, out)
	}
	var module struct{ Dir, Version string }
	if err := json.Unmarshal(out, &module); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(module.Dir, "cluster/addons/dns/nodelocaldns/nodelocaldns.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(stockImage.FindAll(b, -1)); n != 1 {
		t.Fatalf("nodelocaldns.yaml of Kubernetes %s has %d lines with its image, want 1", module.Version, n)
	}
	b = stockImage.ReplaceAll(b, []byte("${1}"+image))
	return strings.NewReplacer(
		"__PILLAR__DNS__DOMAIN__", "cluster.local",
		"__PILLAR__LOCAL__DNS__", linkLocal,
		"__PILLAR__DNS__SERVER__", clusterDNS,
	).Replace(string(b))
}

// TestStockManifest is the promise to users of NodeLocal DNSCache: one line
// changes, and everything holds.
func TestStockManifest(t *testing.T) {
	manifest := stock(t, image)
	apply(t, manifest)
	rolledOut(t, "node-local-dns")
	serves(t, linkLocal, clusterDNS)
	unbroken(t, clusterDNS, true, func(t *testing.T) { kill(t, "n1", "node-cache") })
	rolledOut(t, "node-local-dns")
	serves(t, linkLocal, clusterDNS)

	// With the manifest goes the Service that misses are sent to, and it goes
	// before the pods.
	unbroken(t, clusterDNS, false, func(t *testing.T) { remove(t, manifest) })
	resolves(t, linkLocal) // by the failover table
	for _, node := range nodes {
		lab.rulesRemove(t, node) // the failover table of the link-local address
	}
	nothingLeft(t)
	resolves(t, clusterDNS)
}
