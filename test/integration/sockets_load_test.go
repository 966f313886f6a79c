//go:build privileged && load

package integration

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/load"
)

// A hundred reloads under 5,000 queries a second lose nothing, and leave nothing behind.
func TestSocketsLastOverManyReloads(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long under the race detector")
	}
	t.Parallel()
	const reloads, rate = 100, 5000
	node := newNode(t)
	text := corefile(steady, socketsOn, node.ClusterDNS()...)
	server := serve(t, node, text)
	pod := node.Pods[0].Namespace
	atSockets(t, server, metricsAddress, pod, lab.ClusterDNS4)
	before := descriptors(t, server)
	done := make(chan struct{})
	asked := make(chan error, 1)
	queries := 0
	go func() {
		var lost error
		for seed := uint64(1); ; seed++ {
			// Names of Services over UDP: the first query for one after a reload is a miss.
			r, err := load.Run(t.Context(), node, load.Load{Queries: 2 * rate, Rate: rate, Seed: seed, Mix: &load.Mix{}})
			if err != nil {
				asked <- err
				return
			}
			f := r.Figures()
			queries += f.Queries
			if f.Lost > 0 {
				lost = errors.Join(lost, fmt.Errorf("%d of %d%s", f.Lost, f.Queries, load.Losses(f.LostTo)))
			}
			select {
			case <-done:
				asked <- lost
				return
			default:
			}
		}
	}()
	begin := time.Now()
	for n := range reloads {
		if !reloaded(t, server, strings.ReplaceAll(text, "cache 30", fmt.Sprintf("cache %d", 31+n%2))) {
			t.Error("the reload has failed")
		}
	}
	took := time.Since(begin)
	close(done)
	if err := <-asked; err != nil {
		t.Errorf("queries were lost: %v", err)
	}
	t.Logf("%d reloads in %v under %d queries", reloads, took, queries)
	atSockets(t, server, metricsAddress, pod, lab.ClusterDNS4)
	eventually(t, "no socket is left", func() error {
		if n := descriptors(t, server); n > before+2 {
			return fmt.Errorf("%d files are open, %d before", n, before)
		}
		return nil
	})
}
