package upstream

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/kubeapi"
)

func at(list ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range list {
		out = append(out, netip.MustParseAddrPort(a))
	}
	return out
}

// told has the last addresses of a follower.
type told struct {
	mu    sync.Mutex
	addrs string
	by    string
	times int
}

func (o *told) last() (addrs, by string, times int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.addrs, o.by, o.times
}

func newTold() (*follower, *told) {
	out := &told{}
	return newFollower("kube-system/kube-dns-upstream", func(addrs []netip.AddrPort, by string) {
		out.mu.Lock()
		defer out.mu.Unlock()
		out.addrs, out.by = figure.Joined(addrs), by
		out.times++
	}), out
}

func TestSourcesOfAddresses(t *testing.T) {
	f, got := newTold()
	expect := func(what, addrs string, times int) {
		t.Helper()
		if gotAddrs, by, gotTimes := got.last(); gotAddrs != addrs || gotTimes != times {
			t.Errorf("%s: %s by %s, told %d times; want %s, %d times", what, gotAddrs, by, gotTimes, addrs, times)
		}
	}
	f.tell(nil, byKubeProxy)
	expect("rules without the Service", "", 0)
	f.tell(at("10.96.0.99:53"), byKubeProxy)
	expect("rules", "10.96.0.99:53", 1)
	f.tell(at("10.96.0.99:53"), byKubeProxy)
	expect("the same again", "10.96.0.99:53", 1)
	f.tell(at("10.96.0.98:53"), byAPI)
	expect("the API", "10.96.0.98:53", 2)
	f.tell(at("10.96.0.99:53"), byKubeProxy)
	expect("rules that lag behind the API", "10.96.0.98:53", 2)
	f.tell(nil, byAPI)
	expect("the Service is deleted", "10.96.0.98:53", 2)
	f.apiFailed(errors.New("away"))
	expect("the API does not answer", "10.96.0.98:53", 2)
	f.tell(at("10.96.0.97:53"), byKubeProxy)
	expect("rules while the API does not answer", "10.96.0.97:53", 3)
	f.apiFailed(nil)
	f.tell(at("10.96.0.96:53"), byKubeProxy)
	expect("the API is back", "10.96.0.97:53", 3)
}

func TestRulesAreReadWhileTheAPIDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, got := newTold()
		f.inCluster = func() (kubeapi.Config, error) { return kubeapi.Config{}, kubeapi.ErrNotInCluster }
		var readings atomic.Int32
		f.rules = func() ([]netip.AddrPort, error) {
			switch n := readings.Add(1); {
			case n == 2:
				return nil, errors.New("netlink")
			case n > 2:
				return at("10.96.0.98:53"), nil
			}
			time.Sleep(100 * time.Millisecond) // a large ruleset
			return at("10.96.0.99:53"), nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			f.readRules(ctx)
		}()
		time.Sleep(time.Second)
		synctest.Wait()
		if addrs, by, _ := got.last(); addrs != "10.96.0.99:53" || by != byKubeProxy {
			t.Errorf("%s by %s", addrs, by)
		}
		time.Sleep(3 * time.Second)
		if n := readings.Load(); n != 1 {
			t.Errorf("%d readings, each a tenth of a second, within four seconds", n)
		}
		time.Sleep(10 * time.Second)
		if addrs, _, _ := got.last(); addrs != "10.96.0.98:53" {
			t.Errorf("after a reading that failed: %s", addrs)
		}
		f.apiFailed(nil)
		time.Sleep(rulesInterval)
		before := readings.Load()
		time.Sleep(time.Minute)
		if n := readings.Load(); n != before {
			t.Errorf("%d readings although the API answers", n-before)
		}
		cancel()
		<-done
	})
}
