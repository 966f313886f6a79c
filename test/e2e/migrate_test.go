//go:build e2e

package e2e

import "testing"

// TestMigrate goes the way of docs/migrate.md, from the stock manifest with our
// image to the chart, under load.
func TestMigrate(t *testing.T) {
	t.Cleanup(func() { withoutRules(t) })
	before := stock(t, image)
	apply(t, before)
	rolledOut(t, "node-local-dns")
	serves(t, linkLocal, clusterDNS)

	uninstalled(t)
	unbroken(t, clusterDNS, false, func(t *testing.T) {
		install(t, "mode=both,upstream.create=false")
	})
	serves(t, linkLocal, clusterDNS)
	unbroken(t, linkLocal, false, func(t *testing.T) {
		lab.must(t, "-n", namespace, "delete", "daemonset,configmap,service,serviceaccount", "node-local-dns", "--wait")
		lab.must(t, "-n", namespace, "wait", "--for=delete", "pods", "-l", "k8s-app=node-local-dns", "--timeout=90s")
	})
	serves(t, linkLocal, clusterDNS)
}
