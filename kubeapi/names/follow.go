package names

import (
	"context"
	"net/netip"
	"sync"

	"github.com/trackless-dns/trackless/kubeapi"
)

// Follow watches the pods of a node and all Services until the context ends. Each time one
// of them changes, it calls changed with the owners of the pods' addresses and of the
// ClusterIPs. The calls do not overlap. A map is nil until its first list.
func Follow(ctx context.Context, c *kubeapi.Client, node string, changed func(pods, services map[netip.Addr]Owner)) {
	var (
		mu             sync.Mutex
		pods, services map[netip.Addr]Owner
		wg             sync.WaitGroup
	)
	set := func(to *map[netip.Addr]Owner, owners map[netip.Addr]Owner) {
		mu.Lock()
		defer mu.Unlock()
		*to = owners
		changed(pods, services)
	}
	// Who follows has listed before, and knows what is refused. While the API is away,
	// the last names stay.
	ignored := func(error) {}
	wg.Go(func() {
		c.WatchPods(ctx, node, kubeapi.Handler[kubeapi.Pod]{
			Changed: func(list []kubeapi.Pod) { set(&pods, OfPods(list)) }, Failed: ignored,
		})
	})
	wg.Go(func() {
		c.WatchServices(ctx, kubeapi.Handler[kubeapi.Service]{
			Changed: func(list []kubeapi.Service) { set(&services, OfServices(list)) }, Failed: ignored,
		})
	})
	wg.Wait()
}
