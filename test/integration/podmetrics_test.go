//go:build privileged

package integration

import (
	"errors"
	"fmt"
	"testing"

	"github.com/trackless-dns/trackless/lab"
)

// A pod's queries count for it, whichever way they are answered. That one has no name here:
// there is no API.
func TestQueriesByPod(t *testing.T) {
	for _, tc := range []struct {
		name, fastPath string
	}{
		{"CoreDNS answers", ""},
		{"sockets of our own answer", socketsOn},
		{"the kernel answers", kernelOn},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node := newNode(t)
			server := serve(t, node, corefile(steady, "podmetrics\n"+tc.fastPath, node.ClusterDNS()...))
			pod, asked := node.Pods[0], 0.0
			ask := func() {
				t.Helper()
				if _, err := lookup(t, pod.Namespace, lab.ClusterDNS4, "svc-1-2-3.lab.svc.cluster.local."); err != nil {
					t.Fatal(err)
				}
				asked++
			}
			// counted returns the pod's queries when all are counted.
			counted := func(more float64) (own float64) {
				t.Helper()
				eventually(t, "all queries are counted", func() error {
					m, there := scraped(t, server), false
					for _, metric := range m["coredns_podmetrics_queries_total"].GetMetric() {
						if metric.GetLabel()[0].GetValue() == pod.Addrs[0].String() {
							there, own = true, metric.GetCounter().GetValue()
						}
					}
					if sum, _ := m.Sum("coredns_podmetrics_queries_total"); sum != asked || !there || own < more {
						return fmt.Errorf("the pod has a series: %t, of %v queries, and all have %v; want %v", there, own, sum, asked)
					}
					return nil
				})
				return own
			}
			ask()
			if tc.fastPath != "" {
				eventually(t, tc.name, func() error {
					ask()
					if hits(t, server) == 0 {
						return errors.New("no hit")
					}
					return nil
				})
			}
			before := counted(0)
			for range 5 {
				ask()
			}
			if n := counted(before+5) - before; n != 5 {
				t.Errorf("%v more queries of the pod, want 5", n)
			}
		})
	}
}
