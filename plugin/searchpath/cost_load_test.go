//go:build load

package searchpath

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache"
)

// external has a namespace and every name below example.com. It denies all others, and takes 5 ms.
type external struct{ queries atomic.Int64 }

func (*external) Name() string { return "external" }

func (e *external) ServeDNS(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	e.queries.Add(1)
	time.Sleep(5 * time.Millisecond)
	q := r.Question[0]
	text := "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"
	m := new(dns.Msg).SetReply(r)
	answers := dns.IsSubDomain("example.com.", q.Name)
	if answers {
		text = q.Name + " 300 IN " + map[uint16]string{dns.TypeA: "A 192.0.2.1", dns.TypeAAAA: "AAAA 2001:db8::1"}[q.Qtype]
	}
	rr, err := dns.NewRR(text)
	if err != nil {
		return dns.RcodeServerFailure, err
	}
	switch {
	case answers:
		m.Answer = []dns.RR{rr}
	case q.Name == "default.svc.cluster.local.":
		m.Ns = []dns.RR{rr}
	default:
		m.Rcode, m.Ns = dns.RcodeNameError, []dns.RR{rr}
	}
	return dns.RcodeSuccess, w.WriteMsg(m)
}

// openCache returns an open cache in front of next.
func openCache(t *testing.T, options string, next plugin.Handler) *cache.Cache {
	t.Helper()
	controller := caddy.NewTestController("dns", "cache {\n"+options+"\n}")
	controller.ServerBlockKeys = []string{"."}
	setup, err := caddy.DirectiveAction("dns", "cache")
	if err != nil {
		t.Fatal(err)
	}
	if err := setup(controller); err != nil {
		t.Fatal(err)
	}
	plugins := dnsserver.GetConfig(controller).Plugin
	c := plugins[len(plugins)-1](next).(*cache.Cache)
	if err := c.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func has(m *dns.Msg) bool { return m.Rcode == dns.RcodeSuccess && len(m.Answer) > 0 }

// cost is what a lookup of a new external name costs on average.
type cost struct {
	client, upstream float64 // queries
	took             time.Duration
}

// lookups looks up 1,000 names as a pod does: for each domain of the search path A and AAAA at once,
// until there is an answer.
func lookups(t *testing.T, h plugin.Handler, up *external) cost {
	const names = 1000
	var queries atomic.Int64
	begin := time.Now()
	for i := range names {
		for _, domain := range []string{"default.svc.cluster.local.", "svc.cluster.local.", "cluster.local.", ""} {
			var wg sync.WaitGroup
			var found atomic.Int64
			for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
				wg.Go(func() {
					w := &client{}
					queries.Add(1)
					if _, err := h.ServeDNS(context.Background(), w, new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.example.com.%s", i, domain), qtype)); err != nil {
						t.Error(err)
					}
					if slices.ContainsFunc(w.got, has) {
						found.Add(1)
					}
				})
			}
			wg.Wait()
			if found.Load() == 2 {
				break
			}
		}
	}
	took := time.Since(begin) / names
	synctest.Wait()
	return cost{float64(queries.Load()) / names, float64(up.queries.Load()) / names, took}
}

// TestCost: a lookup of a new name costs two queries upstream if the cache learns denials, and the
// client sends two with this plugin. the README of cache has the same arithmetic.
func TestCost(t *testing.T) {
	var before cost
	for _, tc := range []struct {
		name, options            string
		onePass                  bool
		client, upstream, atMost float64
	}{
		{"one denial for each question", "nxdomain type", false, 8, 8, 1},
		{"cut", "nxdomain learn cluster.local", false, 8, 2.1, 0.3},
		{"one pass", "nxdomain learn cluster.local", true, 2, 2.1, 0.3},
	} {
		synctest.Test(t, func(t *testing.T) {
			up := new(external)
			var h plugin.Handler = openCache(t, tc.options, up)
			if tc.onePass {
				h = &SearchPath{Next: h, zone: "cluster.local."}
			}
			got := lookups(t, h, up)
			if before.took == 0 {
				before = got
			}
			ratio := float64(got.took) / float64(before.took)
			t.Logf("%s: %.3f queries of the client, %.3f upstream, %v, which is %.3f of the first", tc.name, got.client, got.upstream, got.took, ratio)
			if got.client > tc.client || got.upstream > tc.upstream || ratio > tc.atMost {
				t.Errorf("%s: more than %v of the client, %v upstream, or %v of the time", tc.name, tc.client, tc.upstream, tc.atMost)
			}
		})
	}
}
