package notrack

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/agent/checks"
)

// fakeCache stands where `cache` does.
type fakeCache struct{ plugin.Handler }

func (fakeCache) Name() string { return "cache" }

// instance is a process with one server block, in which queries pass through
// before on their way to the checkpoint.
func instance(t *testing.T, before func()) controlled {
	t.Helper()
	config := loaded(t)
	block := &dnsserver.Config{Zone: "."}
	block.AddPlugin(func(next plugin.Handler) plugin.Handler {
		n := &NoTrack{Next: next, config: config, block: block}
		config.made(n)
		return n
	})
	if before != nil {
		block.AddPlugin(func(next plugin.Handler) plugin.Handler {
			return fakeCache{Handler: plugin.HandlerFunc(func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
				before()
				return next.ServeDNS(ctx, w, r)
			})}
		})
		block.AddPlugin(func(next plugin.Handler) plugin.Handler { return &checkpoint{Next: next, config: config} })
	}
	if _, err := dnsserver.NewServer("127.0.0.1:0", []*dnsserver.Config{block}); err != nil {
		t.Fatal(err)
	}
	p := &contract{}
	p.serving.Store(config)
	return controlled{process: p}
}

func TestLive(t *testing.T) {
	passed := 0
	for name, c := range map[string]controlled{"without a cache": instance(t, nil), "with one": instance(t, func() { passed++ })} {
		for range 2 {
			if err := c.Live(t.Context()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if passed != 2 {
		t.Errorf("%d questions passed through the cache, want 2", passed)
	}
	if err := (controlled{process: &contract{}}).Live(t.Context()); err != nil {
		t.Errorf("no block: %v", err)
	}
}

// A handler whose answer is not that of this load is not alive.
func TestLiveIsNotFooled(t *testing.T) {
	c := instance(t, nil)
	config := c.process.serving.Load()
	config.handlers = map[*dnsserver.Config]*NoTrack{{}: {config: loaded(t), block: &dnsserver.Config{}}}
	if err := c.Live(t.Context()); !errors.Is(err, checks.ErrNotOurs) {
		t.Errorf("error %v", err)
	}
}

func TestAHungProcessIsNotAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		c := instance(t, func() { <-release })
		live := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			return c.Live(ctx)
		}
		if err := live(); err == nil || !strings.Contains(err.Error(), "the process hangs") {
			t.Errorf("the first probe: error %v", err)
		}
		time.Sleep(7 * time.Second)
		if err := live(); err == nil || !strings.Contains(err.Error(), "has not come back for 10s") {
			t.Errorf("the next: error %v", err)
		}
		close(release)
		synctest.Wait()
		if err := live(); err != nil {
			t.Errorf("it runs again: %v", err)
		}
	})
}

func TestQuestionsOfOurOwn(t *testing.T) {
	var q questions
	mine, other := netip.MustParseAddrPort("10.96.0.10:4000"), netip.MustParseAddrPort("10.96.0.10:4001")
	q.came(mine) // nobody waits
	came := q.expect(mine)
	q.came(other)
	select {
	case <-came:
		t.Fatal("another query is taken for ours")
	default:
	}
	q.came(mine)
	q.came(mine)
	select {
	case <-came:
	default:
		t.Fatal("our query is not seen")
	}
	q.forget(mine)
	if q.n.Load() != 0 || len(q.out) != 0 {
		t.Error("questions are left")
	}
}
