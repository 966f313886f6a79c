//go:build privileged

package resolvers

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/labtest"
)

const metricsAddress = "127.0.0.1:9253"

// kernelCorefile has the kernel answer cached queries of pods.
func kernelCorefile() string {
	block := func(zone string) string {
		return fmt.Sprintf(`%s:53 {
    errors
    bind %s
    notrack
    fastpath {
        kernel on
    }
    cache 60
%s    prometheus %s
}
`, zone, lab.ClusterDNS4, forwarded, metricsAddress)
	}
	return block(zone) + block(".")
}

// TestResolversAndTheKernel: the resolvers find the same addresses where the kernel answers at
// the pod's device.
func TestResolversAndTheKernel(t *testing.T) {
	for _, r := range resolvers {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			r.require(t)
			dir := t.TempDir()
			command := r.build(t, dir)
			node := labtest.NewNode(t, lab.Options{Pods: 1})
			startKubeDNS(t, node.Namespace)
			server, err := node.Serve(kernelCorefile())
			if err != nil {
				t.Fatal(err)
			}
			testwait.Until(t, time.Minute, "trackless answers", func() error {
				_, err := node.Pods[0].Query(t.Context(), lab.UDP, lab.ClusterDNS4, new(dns.Msg).SetQuestion("svc."+zone, dns.TypeA))
				return errors.Join(err, server.AwaitAttached(t.Context(), metricsAddress))
			})
			var names []string
			for _, l := range lookups {
				names = append(names, l.name)
			}
			lookUp := func() {
				found := r.lookUp(t, node.Pods[0].Namespace, lab.ClusterDNS4.String(), dir, command, names)
				for _, l := range lookups {
					if !slices.Equal(found[l.name], l.want) {
						t.Errorf("%s is %q, want %q", l.name, found[l.name], l.want)
					}
				}
			}
			testwait.Until(t, time.Minute, "the kernel answers for every name", func() error {
				before := kernelHits(t, server)
				lookUp()
				time.Sleep(1500 * time.Millisecond) // counts come within a second
				if n := kernelHits(t, server) - before; n < float64(len(names)) && !t.Failed() {
					return fmt.Errorf("%.0f hits for %d names", n, len(names))
				}
				t.Logf("%.0f hits", kernelHits(t, server)-before)
				return nil
			})
		})
	}
}

// kernelHits is how many queries the kernel has answered.
func kernelHits(t *testing.T, server *lab.Server) float64 {
	t.Helper()
	m, err := server.Metrics(t.Context(), metricsAddress)
	if err != nil {
		t.Fatal(err)
	}
	n, _ := m.Sum("coredns_fastpath_requests_total")
	return n
}
