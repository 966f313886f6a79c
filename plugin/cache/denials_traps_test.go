package cache

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/rewrite"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestDenialTraps are messages with which a cut could deny too much, or deny it wrongly.
func TestDenialTraps(t *testing.T) {
	long := strings.Repeat(strings.Repeat("x", 61)+".", 3)
	long += strings.Repeat("y", 253-len(long)-len(".com.svc.cluster.local")) + ".com.svc.cluster.local."
	for _, tc := range []struct {
		name   string
		option string
		edit   func(*zones)
		script []string
	}{
		{name: "a name of the greatest length", script: []string{"com.svc.cluster.local. A NXDOMAIN upstream", long + " A NXDOMAIN cached"}},
		{name: "ANY of a name that exists", script: []string{"kubernetes.svc.cluster.local. A NXDOMAIN upstream", "kubernetes.default.svc.cluster.local. ANY NOERROR upstream"}},
		{name: "ANY makes no cut", script: []string{"com.svc.cluster.local. ANY NXDOMAIN upstream", "a.com.svc.cluster.local. A NXDOMAIN upstream"}},
		{name: "TTL 0", edit: func(z *zones) {
			z.soas[0] = strings.NewReplacer(" 5 IN", " 0 IN", "86400 5", "86400 0").Replace(clusterSOA)
		}, script: []string{"com.svc.cluster.local. A NXDOMAIN upstream", "com.svc.cluster.local. AAAA NXDOMAIN upstream", "a.com.svc.cluster.local. A NXDOMAIN upstream"}},
		{name: "a SOA record of minimum 0", edit: func(z *zones) { z.soas[0] = strings.Replace(clusterSOA, "86400 5", "86400 0", 1) },
			script: []string{"com.svc.cluster.local. A NXDOMAIN upstream", "a.com.svc.cluster.local. A NXDOMAIN upstream"}},
		{name: "the SOA record spelled in other letters", edit: func(z *zones) {
			z.soas[0] = "CLUSTER.local. 5 IN SOA NS.dns.cluster.LOCAL. HostMaster.Cluster.Local. 1 7200 1800 86400 5"
		},
			script: []string{"com.svc.cluster.local. A NXDOMAIN upstream", "a.com.svc.cluster.local. A NXDOMAIN cached", "dns.cluster.local. A NXDOMAIN upstream", "ns.dns.cluster.local. A NOERROR upstream"}},
		{name: "a domain of the provider around the cluster's zone", option: "learn cluster.local local", edit: func(z *zones) {
			z.soas = []string{clusterSOA, "local. 60 IN SOA ns.provider.example. root.provider.example. 1 7200 1800 86400 60"}
			z.denied = append(z.denied, "cluster.local.", "acme.local.")
		}, script: []string{"api.com.local. A NXDOMAIN upstream", "www.com.local. A NXDOMAIN cached", "svc.cluster.local. A NOERROR upstream",
			"kubernetes.default.svc.cluster.local. A NOERROR upstream"}},
		{name: "the zone of the cluster denied by the zone around it", option: "learn cluster.local", edit: func(z *zones) {
			z.soas = []string{"local. 60 IN SOA ns.provider.example. root.provider.example. 1 7200 1800 86400 60"}
			z.denied = append(z.denied, "cluster.local.")
		}, script: []string{"cluster.local. A NXDOMAIN upstream", "nosuch.default.svc.cluster.local. A NXDOMAIN upstream", "kubernetes.default.svc.cluster.local. A NOERROR upstream"}},
		{name: "svc denied by the zone around it", option: "learn cluster.local svc.cluster.local", edit: func(z *zones) {
			z.denied = append(z.denied, "svc.cluster.local.")
		}, script: []string{"svc.cluster.local. A NXDOMAIN upstream", "kubernetes.default.svc.cluster.local. A NOERROR upstream"}},
		{name: "a denial whose SOA record is below the name", edit: func(z *zones) {
			z.soas = []string{"deep.corp.example.com. 60 IN SOA ns. root. 1 2 3 4 60", "corp.example.com. 60 IN SOA ns. root. 1 2 3 4 60"}
		}, script: []string{"deep.corp.example.com. A NXDOMAIN upstream", "a.deep.corp.example.com. A NXDOMAIN upstream", "b.deep.corp.example.com. A NXDOMAIN upstream"}},
		{name: "a denied alias of a chain", edit: func(z *zones) {
			z.have["one.corp.example.com."] = []string{"60 IN CNAME alias.corp.example.com."}
			z.denied = append(z.denied, "one.corp.example.com.")
		}, script: []string{"one.corp.example.com. A NOERROR upstream", "one.corp.example.com. TXT NOERROR upstream"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := kubeDNS()
				if tc.edit != nil {
					tc.edit(up)
				}
				var option func(*Cache)
				if tc.option != "" {
					option = levels(t, tc.option)
				}
				play(t, newCache(t, up, option), up, tc.script...)
			})
		})
	}
}

// TestCutKeepsTheClientsSpelling: a reply by a cut repeats the question as it was sent, and its SOA
// record is where the letters of the question are.
func TestCutKeepsTheClientsSpelling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := kubeDNS()
		c := newCache(t, up, nil)
		ask(t, c, question("COM.svc.Cluster.local.", nil))
		up.taken()
		const name = "API.example.CoM.sVc.cluSTER.Local."
		m := ask(t, c, question(name, func(m *dns.Msg) { m.SetEdns0(1232, false) }))
		packed, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		got := new(dns.Msg)
		if err := got.Unpack(packed); err != nil {
			t.Fatal(err)
		}
		if asked := up.taken(); len(asked) > 0 {
			t.Errorf("asked %q", asked)
		}
		if got.Question[0].Name != name || got.Rcode != dns.RcodeNameError || len(got.Ns) != 1 ||
			got.Ns[0].Header().Name != "cluSTER.Local." || got.Ns[0].(*dns.SOA).Mbox != "hostmaster.cluster.local." {
			t.Errorf("the reply is %v", got)
		}
	})
}

// TestCutIsOfClassIN: what is denied in the class IN may be in another.
func TestCutIsOfClassIN(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := kubeDNS()
		c := newCache(t, up, nil)
		for _, class := range []uint16{dns.ClassCHAOS, dns.ClassINET, dns.ClassCHAOS, dns.ClassHESIOD, dns.ClassANY} {
			up.taken()
			ask(t, c, question([]string{dns.ClassCHAOS: "a.", dns.ClassINET: "", dns.ClassHESIOD: "b.", 255: "c."}[class]+"com.svc.cluster.local.", func(m *dns.Msg) { m.Question[0].Qclass = class }))
			if asked := up.taken(); class != dns.ClassCHAOS && len(asked) != 1 {
				t.Errorf("class %s: asked %q", dns.ClassToString[class], asked)
			}
		}
	})
}

// TestTargetsExist: a name that an alias leads to exists, and no denial above denies it.
func TestTargetsExist(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		zone := kubeDNS()
		zone.denied = append(zone.denied, "ent2.corp.example.com.")
		up := plugin.HandlerFunc(func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			if r.Question[0].Name != "alias.example.net." {
				return zone.ServeDNS(ctx, w, r)
			}
			m := new(dns.Msg).SetReply(r)
			for _, text := range []string{"alias.example.net. 60 IN CNAME host.ent2.corp.example.com.", "host.ent2.corp.example.com. 60 IN A 192.0.2.2"} {
				rr, err := dns.NewRR(text)
				if err != nil {
					return dns.RcodeServerFailure, err
				}
				m.Answer = append(m.Answer, rr)
			}
			return dns.RcodeSuccess, w.WriteMsg(m)
		})
		c := newCache(t, up, nil)
		for _, name := range []string{"alias.example.net.", "ent2.corp.example.com.", "x.ent2.corp.example.com."} {
			ask(t, c, question(name, nil))
		}
		play(t, c, zone, "host.ent2.corp.example.com. A NOERROR upstream")
	})
}

// rewriting returns the plugin rewrite with a rule, in front of next.
func rewriting(t *testing.T, rule string, next plugin.Handler) plugin.Handler {
	t.Helper()
	controller := caddy.NewTestController("dns", rule)
	setup, err := caddy.DirectiveAction("dns", "rewrite")
	if err != nil {
		t.Fatal(err)
	}
	if err := setup(controller); err != nil {
		t.Fatal(err)
	}
	plugins := dnsserver.GetConfig(controller).Plugin
	h := plugins[len(plugins)-1](next)
	if _, ok := h.(rewrite.Rewrite); !ok {
		t.Fatalf("rewrite is a %T", h)
	}
	return h
}

// TestCutBesideRewrite: a cut denies names as the cache sees them. A name that is rewritten above the
// cache is another one there. A name that is rewritten below gets denials of other zones.
func TestCutBesideRewrite(t *testing.T) {
	for _, tc := range []struct {
		name, above, below string
		script             []string
	}{
		{"a name below a cut becomes a name that exists", "rewrite name exact db.com.svc.cluster.local kubernetes.default.svc.cluster.local", "", []string{
			"a.com.svc.cluster.local. A NXDOMAIN", "com.svc.cluster.local. A NXDOMAIN", "b.com.svc.cluster.local. A NXDOMAIN", "db.com.svc.cluster.local. A NOERROR"}},
		{"names of another zone become names below a cut", "rewrite name suffix .old.example. .cluster.local. answer auto", "", []string{
			"a.com.svc.old.example. A NXDOMAIN", "com.svc.old.example. A NXDOMAIN", "b.com.svc.old.example. A NXDOMAIN", "kubernetes.default.svc.old.example. A NOERROR"}},
		{"below the cache, a name of another zone", "", "rewrite name suffix .old.example. .corp.example.com.", []string{
			"gone.old.example. A NXDOMAIN", "a.gone.old.example. A NXDOMAIN", "b.gone.old.example. A NXDOMAIN", "host.ent2.old.example. A NOERROR"}},
		{"below the cache, one name of many", "", "rewrite name exact db.com.svc.cluster.local kubernetes.default.svc.cluster.local", []string{
			"db.com.svc.cluster.local. A NOERROR", "com.svc.cluster.local. A NXDOMAIN", "a.com.svc.cluster.local. A NXDOMAIN", "db.com.svc.cluster.local. A NOERROR"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := kubeDNS()
				var next plugin.Handler = up
				if tc.below != "" {
					next = rewriting(t, tc.below, next)
				}
				c := newCache(t, nil, levels(t, "learn cluster.local"))
				c.Next = next
				var top plugin.Handler = c
				if tc.above != "" {
					top = rewriting(t, tc.above, top)
				}
				for _, line := range tc.script {
					f := strings.Fields(line)
					w := &client{}
					if _, err := top.ServeDNS(context.Background(), w, new(dns.Msg).SetQuestion(f[0], dns.StringToType[f[1]])); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					if m := w.got[0]; dns.RcodeToString[m.Rcode] != f[2] || m.Question[0].Name != f[0] {
						t.Errorf("%s: %v", line, m)
					}
				}
				if tc.name == "below the cache, a name of another zone" && !slices.Contains(up.taken(), "b.gone.corp.example.com. A") {
					t.Error("a name of another zone is cut")
				}
			})
		})
	}
}

// TestSearchMetric: queries of a search path count once, however they are answered.
func TestSearchMetric(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := kubeDNS()
		c := newCache(t, up, func(c *Cache) { levels(t, "learn cluster.local")(c); c.zonesLabel = "TestSearchMetric" })
		before := testutil.ToFloat64(c.Counters("").Search) // all caches with these labels share it
		play(t, c, up, "api.example.com.default.svc.cluster.local. A NXDOMAIN upstream", "api.example.com.default.svc.cluster.local. AAAA NXDOMAIN cached",
			"api.example.com.cluster.local. A NXDOMAIN upstream", "api.example.com. A NOERROR upstream", "kubernetes.default.svc.cluster.local. A NOERROR upstream")
		if got := testutil.ToFloat64(c.Counters("").Search) - before; got != 3 {
			t.Errorf("counted %v, want 3", got)
		}
	})
}
