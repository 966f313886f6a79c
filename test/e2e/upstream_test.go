//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

const upstreamService = `apiVersion: v1
kind: Service
metadata: {name: kube-dns-upstream, namespace: kube-system}
spec:
  clusterIP: %s
  selector: {k8s-app: kube-dns}
  ports:
    - {name: dns, port: 53, protocol: UDP}
    - {name: dns-tcp, port: 53, protocol: TCP}
`

// TestUpstreamMoves deletes the Service of misses, and makes it again with
// another address. Meanwhile kube-dns answers pods; then the address is followed,
// with permission to ask the API (our manifest) and without (the stock one, where
// kube-proxy's rules tell).
func TestUpstreamMoves(t *testing.T) {
	for _, tc := range []struct {
		name, daemonset, address string
		manifest                 func(*testing.T) string
	}{
		{"kustomize", "trackless", "10.96.77.1", func(t *testing.T) string { return overlay(t, "cluster-ip") }},
		{"stock manifest", "node-local-dns", "10.96.77.2", func(t *testing.T) string { return stock(t, image) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			apply(t, tc.manifest(t))
			rolledOut(t, tc.daemonset)
			serves(t, clusterDNS)

			before := lab.must(t, "-n", namespace, "get", "service", "kube-dns-upstream", "-o", "jsonpath={.spec.clusterIP}")
			unbroken(t, clusterDNS, false, func(t *testing.T) {
				lab.must(t, "-n", namespace, "delete", "service", "kube-dns-upstream")
				for _, node := range nodes {
					eventually(t, node+" gives the queries back", 30*time.Second, func() error {
						asks(t, node, clusterDNS)
						if len(entries(t, node, clusterDNS)) == 0 {
							return errors.New("no entry for " + clusterDNS + " in its table")
						}
						return nil
					})
				}
			})
			if out, err := lab.kubectlWith(t.Context(), fmt.Sprintf(upstreamService, tc.address), "apply", "-f", "-"); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, node := range nodes {
				// Connections to the old address work as long as the table has them.
				forget(t, node, before)
				eventually(t, node+" asks the new address", time.Minute, func() error {
					if _, err := lab.inClient(t.Context(), node, "load", "-server", clusterDNS, "-for", "200ms", "-name", "*.moved.svc.cluster.local"); err != nil {
						return err
					}
					if len(entries(t, node, tc.address)) == 0 {
						return errors.New("no entry for " + tc.address + " in its table")
					}
					return nil
				})
			}
			serves(t, clusterDNS)
		})
	}
}

// TestUpstreamEndpoints has misses go straight to the pods of kube-dns, also
// when they are others, and past the Service and the table.
func TestUpstreamEndpoints(t *testing.T) {
	uninstalled(t)
	install(t, "upstream.endpoints=true")
	serves(t, clusterDNS)
	lab.must(t, "-n", namespace, "rollout", "restart", "deployment/coredns")
	lab.must(t, "-n", namespace, "rollout", "status", "deployment/coredns", "--timeout=3m")
	serves(t, clusterDNS)

	service := lab.must(t, "-n", namespace, "get", "service", "kube-dns-upstream", "-o", "jsonpath={.spec.clusterIP}")
	pods := strings.Fields(lab.must(t, "-n", namespace, "get", "pods", "-l", "k8s-app=kube-dns", "-o", "jsonpath={.items[*].status.podIP}"))
	if len(pods) == 0 {
		t.Fatal("kube-dns has no pod")
	}
	for i, node := range nodes {
		forget(t, node, service)
		for _, pod := range pods {
			forget(t, node, pod)
		}
		asks(t, node, clusterDNS) // names that are in no cache
		if e := entries(t, node, service); len(e) > 0 {
			t.Errorf("%s: %d misses went to the Service, the first: %s", node, len(e), e[0])
		}
		// Of what comes in from the other node this one keeps an entry.
		other := fmt.Sprintf("src=172.31.77.1%d ", len(nodes)-i)
		for _, pod := range pods {
			e := slices.DeleteFunc(entries(t, node, pod), func(line string) bool { return strings.Contains(line, other) })
			if len(e) > 0 {
				t.Errorf("%s: %d entries for misses to the pod %s, the first: %s", node, len(e), pod, e[0])
			}
		}
	}
}
