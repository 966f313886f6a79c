package notrack

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/agent"
	"github.com/trackless-dns/trackless/agent/checks"
	"github.com/trackless-dns/trackless/agent/probes"
)

// fakeCache takes the place of `cache`.
type fakeCache struct{ plugin.Handler }

func (fakeCache) Name() string { return "cache" }

// instance returns a configuration with one server block. Its queries call before on their
// way to the checkpoint.
func instance(t *testing.T, before func()) *configuration {
	t.Helper()
	config := loaded(t)
	block := &dnsserver.Config{Zone: "."}
	block.AddPlugin(func(next plugin.Handler) plugin.Handler {
		n := &NoTrack{Next: next, config: config, block: block}
		config.addHandler(n)
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
	return config
}

func TestLive(t *testing.T) {
	passed := 0
	var l probes.Liveness
	for name, c := range map[string]*configuration{"without a cache": instance(t, nil), "with one": instance(t, func() { passed++ })} {
		for range 2 {
			if err := l.Probe(t.Context(), c.askInside); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if passed != 2 {
		t.Errorf("%d questions passed through the cache, want 2", passed)
	}
	if err := agent.New(agent.Config{Log: log}).Controlled("").Live(t.Context()); err != nil {
		t.Errorf("no block: %v", err)
	}
}

// The answer of another load is no sign of life.
func TestLiveRefusesAnswersOfOtherLoads(t *testing.T) {
	var l probes.Liveness
	c := instance(t, nil)
	c.handlers = map[*dnsserver.Config]*NoTrack{{}: {config: loaded(t), block: &dnsserver.Config{}}}
	if err := l.Probe(t.Context(), c.askInside); !errors.Is(err, checks.ErrNotOurs) {
		t.Errorf("error %v", err)
	}
}

func TestAHungProcessIsNotAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var l probes.Liveness
		c := instance(t, func() { <-release })
		live := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			return l.Probe(ctx, c.askInside)
		}
		if err := live(); !errors.Is(err, probes.ErrHangs) {
			t.Errorf("the first probe: error %v", err)
		}
		time.Sleep(7 * time.Second)
		var stuck *probes.StuckError
		if err := live(); !errors.As(err, &stuck) || stuck.For != 10*time.Second {
			t.Errorf("the second probe: error %v", err)
		}
		close(release)
		synctest.Wait()
		if err := live(); err != nil {
			t.Errorf("after the release: error %v", err)
		}
	})
}
