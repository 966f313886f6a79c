package reconcile

import (
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Fast paths are told of leases while these are held, and at once when they are not.
func TestLeasesAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, k := newNode()
		p := planFor("10.96.0.10")
		attached(t, k, p, n)
		var mu sync.Mutex
		var last map[netip.Addr]time.Time
		k.OnLeases(func(leases map[netip.Addr]time.Time) {
			mu.Lock()
			defer mu.Unlock()
			last = leases
		})
		left := func() time.Duration {
			mu.Lock()
			defer mu.Unlock()
			until, held := last[netip.MustParseAddr("10.96.0.10")]
			if !held {
				return 0
			}
			return time.Until(until)
		}
		for range 20 {
			settle(300 * time.Millisecond)
			if l := left(); l <= 0 || l > p.Lease {
				t.Fatalf("the lease is held for %s from now", l)
			}
		}
		if err := k.DetachByHand(); err != nil {
			t.Fatal(err)
		}
		if l := left(); l != 0 {
			t.Errorf("detached, and the lease is held for %s", l)
		}
	})
}
