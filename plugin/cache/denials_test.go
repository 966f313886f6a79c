package cache

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/trackless-dns/trackless/plugin/cache/cut"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

const (
	clusterSOA = "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"
	companySOA = "corp.example.com. 60 IN SOA ns1.example.com. root.example.com. 1 7200 1800 86400 60"
	rootSOA    = ". 60 IN SOA a.root-servers.net. nstld.verisign-grs.com. 1 7200 1800 86400 60"
)

// zones is an upstream with the records of a few zones. A name has the records, and exists if
// it or a name below has some. It keeps the questions.
type zones struct {
	mu     sync.Mutex
	soas   []string
	have   map[string][]string // by name
	denied []string            // names that are denied although they exist
	asked  []string
}

func (z *zones) Name() string { return "zones" }

func (z *zones) ServeDNS(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	q := r.Question[0]
	name := strings.ToLower(q.Name)
	z.asked = append(z.asked, name+" "+dns.TypeToString[q.Qtype])
	m := new(dns.Msg).SetReply(r)
	exists := false
	for owner, texts := range z.have {
		exists = exists || dns.IsSubDomain(name, owner)
		for _, text := range texts {
			rr, err := dns.NewRR(owner + " " + text)
			if err != nil {
				return dns.RcodeServerFailure, err
			}
			if owner == name && (rr.Header().Rrtype == q.Qtype || rr.Header().Rrtype == dns.TypeCNAME) {
				m.Answer = append(m.Answer, rr)
			}
		}
	}
	if len(m.Answer) == 0 {
		if !exists || slices.Contains(z.denied, name) {
			m.Rcode = dns.RcodeNameError
		}
		m.Ns = z.soa(name)
	}
	return dns.RcodeSuccess, w.WriteMsg(m)
}

// soa returns the SOA record of the smallest zone that has the name.
func (z *zones) soa(name string) []dns.RR {
	var best dns.RR
	for _, text := range z.soas {
		rr, err := dns.NewRR(text)
		if err != nil {
			return nil
		}
		if owner := rr.Header().Name; dns.IsSubDomain(owner, name) && (best == nil || len(owner) > len(best.Header().Name)) {
			best = rr
		}
	}
	return []dns.RR{best}
}

func (z *zones) set(name string, texts ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.have[name] = texts; texts == nil {
		delete(z.have, name)
	}
}

// taken returns the questions since the last call.
func (z *zones) taken() []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	asked := z.asked
	z.asked = nil
	return asked
}

// kubeDNS answers as CoreDNS with the plugin kubernetes, and forwards other names.
func kubeDNS() *zones {
	return &zones{
		soas: []string{clusterSOA, companySOA, rootSOA},
		have: map[string][]string{
			"kubernetes.default.svc.cluster.local.":             {"5 IN A 10.96.0.1"},
			"_https._tcp.kubernetes.default.svc.cluster.local.": {"5 IN SRV 0 100 443 kubernetes.default.svc.cluster.local."},
			"ns.dns.cluster.local.":                             {"5 IN A 10.96.0.10"},
			"dns-version.cluster.local.":                        {`5 IN TXT "1.1.0"`},
			"1-2-3-4.default.pod.cluster.local.":                {"5 IN A 1.2.3.4"},
			"www.acme.local.":                                   {"60 IN A 192.0.2.1"},
			"ent.corp.example.com.":                             {"60 IN TXT x"},
			"host.ent2.corp.example.com.":                       {"60 IN A 192.0.2.2"},
			"alias.corp.example.com.":                           {"60 IN CNAME gone.corp.example.com."},
			"below.alias.corp.example.com.":                     {"60 IN A 192.0.2.3"},
			"*.wild.corp.example.com.":                          {"60 IN A 192.0.2.4"},
			"other.example.com.":                                {"60 IN A 192.0.2.5"},
			"api.example.com.":                                  {"60 IN A 192.0.2.6"},
			"headless.default.svc.cluster.local.":               {"5 IN A 10.0.0.1"},
			"0.headless.default.svc.cluster.local.":             {"5 IN A 10.0.0.1"},
			"_http._tcp.headless.default.svc.cluster.local.":    {"5 IN SRV 0 100 80 0.headless.default.svc.cluster.local."},
			"10.0.96.10.in-addr.arpa.":                          {"5 IN PTR kubernetes.default.svc.cluster.local."},
			"external.default.svc.cluster.local.":               {"5 IN CNAME api.example.com."},
			"deep.below.kubernetes.default.svc.cluster.local.":  {"5 IN A 10.0.0.9"},
		},
		denied: []string{"_tcp.kubernetes.default.svc.cluster.local.", "dns.cluster.local.", "_tcp.headless.default.svc.cluster.local."},
	}
}

// levels sets the option nxdomain.
func levels(t testing.TB, lines ...string) func(*Cache) {
	return func(c *Cache) {
		for _, line := range lines {
			if err := parseNXDOMAIN(c, strings.Fields(line)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// play asks the questions of a script one by one. A line is a name, a type, and the response
// code. The last word is upstream if the query must go upstream, and cached if not.
func play(t *testing.T, c *Cache, up *zones, script ...string) {
	t.Helper()
	for _, line := range script {
		f := strings.Fields(line)
		if f[0] == "sleep" {
			d, err := time.ParseDuration(f[1])
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(d)
			continue
		}
		up.taken()
		m := ask(t, c, question(f[0], func(m *dns.Msg) {
			m.Question[0].Qtype = dns.StringToType[f[1]]
			for _, flag := range f[4:] {
				switch flag {
				case "do":
					m.SetEdns0(1232, true)
				case "cd":
					m.CheckingDisabled = true
				case "nord":
					m.RecursionDesired = false
				case "ecs":
					withSubnet(24)(m)
				}
			}
		}))
		synctest.Wait()
		asked := slices.Contains(up.taken(), f[0]+" "+f[1])
		if m == nil || dns.RcodeToString[m.Rcode] != f[2] || asked != (f[3] == "upstream") {
			t.Errorf("%s: %v, upstream %t", line, m, asked)
			continue
		}
		if m.Rcode == dns.RcodeNameError && (len(m.Ns) != 1 || m.Ns[0].Header().Rrtype != dns.TypeSOA || !dns.IsSubDomain(m.Ns[0].Header().Name, f[0])) {
			t.Errorf("%s: denial without the SOA record of its zone: %v", line, m)
		}
	}
}

// TestDenialDeniesMore has a row for each way in which a denial does or does not deny another
// question.
func TestDenialDeniesMore(t *testing.T) {
	for _, tc := range []struct {
		name   string
		edit   func(*zones)
		option []string
		script []string
	}{
		{name: "A denies AAAA", script: []string{
			"gone.corp.example.com. A NXDOMAIN upstream", "gone.corp.example.com. AAAA NXDOMAIN cached", "GONE.corp.example.com. AAAA NXDOMAIN cached"}},
		{name: "AAAA denies A and other types", script: []string{
			"gone.corp.example.com. AAAA NXDOMAIN upstream", "gone.corp.example.com. A NXDOMAIN cached", "gone.corp.example.com. MX NXDOMAIN cached"}},
		{name: "TXT denies other types", script: []string{"gone.corp.example.com. TXT NXDOMAIN upstream", "gone.corp.example.com. A NXDOMAIN cached"}},
		{name: "in a zone of CoreDNS TXT denies itself", script: []string{
			"nosuch.default.svc.cluster.local. TXT NXDOMAIN upstream", "nosuch.default.svc.cluster.local. A NXDOMAIN upstream"}},
		{name: "in a zone of CoreDNS A denies TXT only where Services live", script: []string{
			"nosuch.default.svc.cluster.local. A NXDOMAIN upstream", "nosuch.default.svc.cluster.local. TXT NXDOMAIN cached",
			"dns.cluster.local. A NXDOMAIN upstream", "dns.cluster.local. AAAA NXDOMAIN cached", "dns.cluster.local. TXT NXDOMAIN upstream"}},
		{name: "NODATA denies one type", script: []string{
			"default.svc.cluster.local. A NOERROR upstream", "default.svc.cluster.local. AAAA NOERROR upstream"}},
		{name: "word type", option: []string{"type"}, script: []string{
			"gone.corp.example.com. A NXDOMAIN upstream", "gone.corp.example.com. AAAA NXDOMAIN upstream",
			"com.svc.cluster.local. A NXDOMAIN upstream", "a.com.svc.cluster.local. A NXDOMAIN upstream"}},
		{name: "word name", option: []string{"name"}, script: []string{
			"com.svc.cluster.local. A NXDOMAIN upstream", "com.svc.cluster.local. AAAA NXDOMAIN cached", "a.com.svc.cluster.local. A NXDOMAIN upstream"}},
		{name: "another level by zone", option: []string{"type corp.example.com"}, script: []string{
			"gone.corp.example.com. A NXDOMAIN upstream", "gone.corp.example.com. AAAA NXDOMAIN upstream",
			"com.svc.cluster.local. A NXDOMAIN upstream", "a.com.svc.cluster.local. A NXDOMAIN cached"}},
		{name: "a zone below a denied name that is not cut", option: []string{"name no.com.svc.cluster.local"}, script: []string{
			"com.svc.cluster.local. A NXDOMAIN upstream", "a.no.com.svc.cluster.local. A NXDOMAIN upstream", "a.com.svc.cluster.local. A NXDOMAIN cached"}},

		{name: "names below", script: []string{
			"com.svc.cluster.local. A NXDOMAIN upstream", "api.example.com.svc.cluster.local. A NXDOMAIN cached",
			"api.example.com.svc.cluster.local. AAAA NXDOMAIN cached", "api.example.com.svc.cluster.local. SRV NXDOMAIN cached",
			"com.default.svc.cluster.local. A NXDOMAIN upstream", "x.com.default.svc.cluster.local. A NXDOMAIN cached",
			"com.cluster.local. AAAA NXDOMAIN upstream", "api.example.com.cluster.local. A NXDOMAIN cached"}},
		{name: "not longer than the upstream allows", script: []string{
			"com.svc.cluster.local. A NXDOMAIN upstream", "sleep 4s", "a.com.svc.cluster.local. A NXDOMAIN cached", "sleep 1100ms", "b.com.svc.cluster.local. A NXDOMAIN upstream"}},
		{name: "not longer than the upstream allows, below MINTTL", option: nil, edit: func(z *zones) { z.soas[0] = strings.Replace(clusterSOA, " 5 IN", " 2 IN", 1) }, script: []string{
			"com.svc.cluster.local. A NXDOMAIN upstream", "a.com.svc.cluster.local. A NXDOMAIN cached", "sleep 2100ms",
			"com.svc.cluster.local. A NXDOMAIN cached", "b.com.svc.cluster.local. A NXDOMAIN upstream"}},
		{name: "TXT makes no cut", script: []string{"com.svc.cluster.local. TXT NXDOMAIN upstream", "a.com.svc.cluster.local. A NXDOMAIN upstream"}},

		// CoreDNS's plugin kubernetes denies these names, which have names below them.
		{name: "_tcp of a Service", script: []string{
			"_tcp.kubernetes.default.svc.cluster.local. A NXDOMAIN upstream", "_https._tcp.kubernetes.default.svc.cluster.local. SRV NOERROR upstream"}},
		{name: "dns", script: []string{"dns.cluster.local. A NXDOMAIN upstream", "ns.dns.cluster.local. A NOERROR upstream"}},
		{name: "dns-version", edit: func(z *zones) { z.denied = append(z.denied, "dns-version.cluster.local.") }, script: []string{
			"dns-version.cluster.local. A NXDOMAIN upstream", "dns-version.cluster.local. TXT NOERROR upstream"}},
		{name: "pod", edit: func(z *zones) { z.denied = append(z.denied, "default.pod.cluster.local.") }, script: []string{
			"default.pod.cluster.local. A NXDOMAIN upstream", "1-2-3-4.default.pod.cluster.local. A NOERROR upstream"}},
		{name: "reverse zone", edit: func(z *zones) {
			z.soas = append(z.soas, "10.in-addr.arpa. 5 IN SOA ns.dns.10.in-addr.arpa. hostmaster.10.in-addr.arpa. 1 2 3 4 5")
			z.denied = append(z.denied, "96.10.in-addr.arpa.")
		}, script: []string{"96.10.in-addr.arpa. A NXDOMAIN upstream", "10.0.96.10.in-addr.arpa. PTR NOERROR upstream"}},
		{name: "headless Service without endpoints, which get ready", edit: func(z *zones) {
			z.set("headless.default.svc.cluster.local.")
			z.denied = append(z.denied, "headless.default.svc.cluster.local.")
		}, script: []string{
			"headless.default.svc.cluster.local. A NXDOMAIN upstream", "0.headless.default.svc.cluster.local. A NXDOMAIN cached",
			"sleep 5s", "0.headless.default.svc.cluster.local. A NOERROR upstream"}},

		{name: "the root's denial of local", script: []string{
			"local. A NXDOMAIN upstream", "kubernetes.default.svc.cluster.local. A NOERROR upstream", "www.acme.local. A NOERROR upstream"},
			edit: func(z *zones) { z.denied = append(z.denied, "local.") }},
		{name: "the denial of a zone by its parent", edit: func(z *zones) {
			z.soas = append(z.soas, "example.com. 60 IN SOA ns1.example.com. root.example.com. 1 2 3 4 60")
			z.soas = slices.DeleteFunc(z.soas, func(s string) bool { return s == companySOA })
			z.denied = append(z.denied, "corp.example.com.")
		}, script: []string{"corp.example.com. A NXDOMAIN upstream", "host.ent2.corp.example.com. A NOERROR upstream"}},
		{name: "in other zones, once a name below was denied, too", script: []string{
			"com.corp.example.com. A NXDOMAIN upstream", "a.com.corp.example.com. A NXDOMAIN upstream", "b.com.corp.example.com. A NXDOMAIN cached",
			"c.com.corp.example.com. AAAA NXDOMAIN cached"}},
		{name: "an empty non-terminal that is denied", edit: func(z *zones) { z.denied = append(z.denied, "ent2.corp.example.com.") }, script: []string{
			"ent2.corp.example.com. A NXDOMAIN upstream", "host.ent2.corp.example.com. A NOERROR upstream",
			"a.ent2.corp.example.com. A NXDOMAIN upstream", "b.ent2.corp.example.com. A NXDOMAIN upstream"}},
		{name: "an answer below removes the cut", edit: func(z *zones) { z.denied = append(z.denied, "ent2.corp.example.com.") }, script: []string{
			"ent2.corp.example.com. A NXDOMAIN upstream", "a.ent2.corp.example.com. A NXDOMAIN upstream", "b.ent2.corp.example.com. A NXDOMAIN cached",
			"host.ent2.corp.example.com. A NXDOMAIN cached", "host.ent2.corp.example.com. A NOERROR upstream nord",
			"b.ent2.corp.example.com. A NXDOMAIN upstream", "sleep 30m", "ent2.corp.example.com. A NXDOMAIN upstream", "c.ent2.corp.example.com. A NXDOMAIN upstream",
			"d.ent2.corp.example.com. A NXDOMAIN upstream"}},
		{name: "the type of a name that exists", edit: func(z *zones) { z.denied = append(z.denied, "ent.corp.example.com.") }, script: []string{
			"ent.corp.example.com. TXT NOERROR upstream", "ent.corp.example.com. AAAA NXDOMAIN upstream", "ent.corp.example.com. A NXDOMAIN upstream"}},
		{name: "an alias to a denied name", edit: func(z *zones) { z.denied = append(z.denied, "alias.corp.example.com.") }, script: []string{
			"gone.corp.example.com. A NXDOMAIN upstream", "alias.corp.example.com. A NOERROR upstream", "below.alias.corp.example.com. A NOERROR upstream"}},
		{name: "a wildcard's name", script: []string{"a.wild.corp.example.com. A NXDOMAIN upstream", "*.wild.corp.example.com. A NOERROR upstream"}},

		{name: "DO of a zone without signatures", script: []string{
			"com.svc.cluster.local. A NXDOMAIN upstream", "a.com.svc.cluster.local. A NXDOMAIN upstream do",
			"com.svc.cluster.local. AAAA NXDOMAIN upstream do", "b.com.svc.cluster.local. A NXDOMAIN cached do"}},
		{name: "CD", script: []string{"com.svc.cluster.local. A NXDOMAIN upstream", "a.com.svc.cluster.local. A NXDOMAIN upstream cd"}},
		{name: "without RD, as our own checks", script: []string{"com.svc.cluster.local. A NXDOMAIN upstream", "a.com.svc.cluster.local. A NXDOMAIN upstream nord"}},
		{name: "client subnet", script: []string{"com.svc.cluster.local. A NXDOMAIN upstream", "a.com.svc.cluster.local. A NXDOMAIN upstream ecs"}},
		{name: "HINFO, for which plugin loop asks", script: []string{"com.svc.cluster.local. A NXDOMAIN upstream", "a.com.svc.cluster.local. HINFO NXDOMAIN upstream"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := kubeDNS()
				if tc.edit != nil {
					tc.edit(up)
				}
				play(t, newCache(t, up, levels(t, tc.option...)), up, tc.script...)
			})
		})
	}
}

// TestDenialUnderOptions: what is stale, or only preferred, denies nothing else.
func TestDenialUnderOptions(t *testing.T) {
	for _, tc := range []struct {
		name   string
		option func(*Cache)
		script []string
	}{
		{"a stale denial", func(c *Cache) { c.staleUpTo = time.Hour }, []string{
			"com.svc.cluster.local. A NXDOMAIN upstream", "sleep 6s", "a.com.svc.cluster.local. A NXDOMAIN upstream"}},
		{"a stale answer of the name itself comes first", func(c *Cache) { c.staleUpTo = 3 * time.Hour }, []string{
			"host.ent2.corp.example.com. A NOERROR upstream", "sleep 62m", "ent2.corp.example.com. A NXDOMAIN upstream", "x.ent2.corp.example.com. A NXDOMAIN upstream",
			"y.ent2.corp.example.com. A NXDOMAIN cached", "host.ent2.corp.example.com. A NOERROR upstream"}},
		{"a fresh denial of a name above comes before a stale one", func(c *Cache) { c.staleUpTo, c.verifyStale = time.Hour, true }, []string{
			"a.com.svc.cluster.local. A NXDOMAIN upstream", "sleep 6s", "com.svc.cluster.local. A NXDOMAIN upstream", "a.com.svc.cluster.local. A NXDOMAIN cached",
			"sleep 6s", "a.com.svc.cluster.local. A NXDOMAIN upstream"}},
		{"a preferred positive answer comes first", func(c *Cache) { c.staleUpTo, c.preferPositive = 3*time.Hour, true }, []string{
			"host.ent2.corp.example.com. A NOERROR upstream", "sleep 62m", "ent2.corp.example.com. A NXDOMAIN upstream", "x.ent2.corp.example.com. A NXDOMAIN upstream",
			"y.ent2.corp.example.com. A NXDOMAIN cached", "host.ent2.corp.example.com. A NOERROR upstream"}},
		{"a denial that prefetch renews", func(c *Cache) { c.prefetch, c.percentage = 1, 90 }, []string{
			"com.svc.cluster.local. A NXDOMAIN upstream", "sleep 2s", "com.svc.cluster.local. A NXDOMAIN cached", "sleep 2s", "a.com.svc.cluster.local. A NXDOMAIN cached",
			"sleep 4s", "b.com.svc.cluster.local. A NXDOMAIN upstream"}},
		{"denials are not cached in a zone", func(c *Cache) { c.nexcept = []string{"off.com.svc.cluster.local."} }, []string{
			"com.svc.cluster.local. A NXDOMAIN upstream", "a.off.com.svc.cluster.local. A NXDOMAIN upstream", "a.com.svc.cluster.local. A NXDOMAIN cached"}},
		{"positive answers are not cached, and count", func(c *Cache) { c.pexcept = []string{"."} }, []string{
			"deep.below.kubernetes.default.svc.cluster.local. A NOERROR upstream", "below.kubernetes.default.svc.cluster.local. A NOERROR upstream"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := kubeDNS()
				up.denied = append(up.denied, "ent2.corp.example.com.")
				play(t, newCache(t, up, tc.option), up, tc.script...)
			})
		})
	}
}

// TestServiceMadeAfterDenial: it answers within the denial's TTL.
func TestServiceMadeAfterDenial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := kubeDNS()
		c := newCache(t, up, levels(t, "learn cluster.local"))
		play(t, c, up, "new.team.svc.cluster.local. A NXDOMAIN upstream", "sleep 1s", "new.team.svc.cluster.local. A NXDOMAIN cached")
		up.set("new.team.svc.cluster.local.", "5 IN A 10.96.0.7")
		play(t, c, up, "sleep 5s", "new.team.svc.cluster.local. A NOERROR upstream")
	})
}

// TestLearn: the names of a search path cost one query each, and one a TTL to learn it.
func TestLearn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := kubeDNS()
		c := newCache(t, up, levels(t, "learn cluster.local"))
		play(t, c, up, "api.example.com.default.svc.cluster.local. A NXDOMAIN upstream")
		if got := up.taken(); len(got) != 0 {
			t.Errorf("asked late: %q", got)
		}
		play(t, c, up,
			"api.example.com.default.svc.cluster.local. AAAA NXDOMAIN cached", "www.example.com.default.svc.cluster.local. A NXDOMAIN cached",
			"kubernetes.default.svc.cluster.local. A NOERROR upstream", "nosuch.default.svc.cluster.local. A NXDOMAIN upstream")
		ask(t, c, question("a.org.svc.cluster.local.", nil))
		synctest.Wait()
		if got, want := up.taken(), []string{"a.org.svc.cluster.local. A", "org.svc.cluster.local. A"}; !slices.Equal(got, want) {
			t.Errorf("asked %q, want %q", got, want)
		}
	})
}

// TestLearnAsksUpToADenial: names that exist are passed by, and asked for once.
func TestLearnAsksUpToADenial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := kubeDNS()
		c := newCache(t, up, levels(t, "learn cluster.local"))
		for i, want := range [][]string{
			{"api.example.com.default.svc.cluster.local. A", "default.svc.cluster.local. A", "com.default.svc.cluster.local. A"},
			{"api.example.org.default.svc.cluster.local. A", "org.default.svc.cluster.local. A"},
			nil,
		} {
			ask(t, c, question([]string{"api.example.com.", "api.example.org.", "www.example.org."}[i]+"default.svc.cluster.local.", nil))
			synctest.Wait()
			if got := up.taken(); !slices.Equal(got, want) {
				t.Errorf("asked %q, want %q", got, want)
			}
		}
	})
}

// TestLearnAgain: while a cut is in use, one query a TTL renews it before it expires. The query of the
// client that sets it off goes upstream, too.
func TestLearnAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := kubeDNS()
		c := newCache(t, up, levels(t, "learn cluster.local"))
		ask(t, c, question("first.example.com.svc.cluster.local.", nil))
		synctest.Wait()
		up.taken()
		for i := range 60 {
			time.Sleep(500 * time.Millisecond)
			ask(t, c, question(fmt.Sprintf("n%d.example.com.svc.cluster.local.", i), nil))
			synctest.Wait()
		}
		asked := up.taken()
		learned := slices.DeleteFunc(slices.Clone(asked), func(q string) bool { return q != "com.svc.cluster.local. A" })
		if len(learned) < 5 || len(learned) > 8 || len(asked) != 2*len(learned) {
			t.Errorf("in 30 s, with a TTL of 5 s, asked %q", asked)
		}
	})
}

// TestWrongCutEnds: kube-dns has a name of its own, by hosts or rewrite, below a name that it denies.
// While the name is asked for, it is found when the cut is renewed.
func TestWrongCutEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := kubeDNS()
		up.set("db.corp.cluster.local.", "5 IN A 192.0.2.7")
		up.denied = append(up.denied, "corp.cluster.local.")
		c := newCache(t, up, levels(t, "learn cluster.local"))
		play(t, c, up, "x.corp.cluster.local. A NXDOMAIN upstream", "db.corp.cluster.local. A NXDOMAIN cached")
		begin := time.Now()
		for ask(t, c, question("db.corp.cluster.local.", nil)).Rcode != dns.RcodeSuccess {
			if time.Since(begin) > 5*time.Second {
				t.Fatal("not found within the TTL of the denial")
			}
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
		}
		play(t, c, up, "sleep 6s", "x.corp.cluster.local. A NXDOMAIN upstream", "corp.cluster.local. A NXDOMAIN upstream", "db.corp.cluster.local. A NOERROR upstream")
	})
}

// TestLearnIsBounded: while the upstream does not answer, few queries are under way, and one
// for each name.
func TestLearnIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		zone := kubeDNS()
		hold := make(chan struct{})
		var mu sync.Mutex
		probes := map[string]int{}
		up := plugin.HandlerFunc(func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			if name := r.Question[0].Name; dns.CountLabel(name) == 4 {
				mu.Lock()
				probes[name]++
				mu.Unlock()
				<-hold
			}
			return zone.ServeDNS(ctx, w, r)
		})
		c := newCache(t, up, levels(t, "learn cluster.local"))
		for i := range 100 {
			ask(t, c, question(fmt.Sprintf("a.b.tld%d.svc.cluster.local.", i/2), nil))
			ask(t, c, question(fmt.Sprintf("b.b.tld%d.svc.cluster.local.", i/2), nil))
			synctest.Wait()
		}
		mu.Lock()
		n := len(probes)
		for name, times := range probes {
			if times != 1 {
				t.Errorf("%s: asked %d times at once", name, times)
			}
		}
		mu.Unlock()
		close(hold)
		synctest.Wait()
		if n != maxLearning {
			t.Errorf("%d queries under way, want %d", n, maxLearning)
		}
	})
}

// TestFlushEndsCut: a name that is flushed is asked for, although a name above is denied.
func TestFlushEndsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := kubeDNS()
		c := newCache(t, up, nil)
		play(t, c, up, "com.svc.cluster.local. A NXDOMAIN upstream", "a.com.svc.cluster.local. A NXDOMAIN cached")
		name, err := wire.AppendName(nil, "a.com.svc.cluster.local.")
		if err != nil {
			t.Fatal(err)
		}
		c.engine.Flush(engine.Scope{Name: name}, func(wire.Key, *store.Record) {})
		play(t, c, up, "a.com.svc.cluster.local. A NXDOMAIN upstream", "com.svc.cluster.local. A NXDOMAIN cached")
	})
}

// TestCutMetrics: an answer from the denial of another question is a hit, and counts for its
// reason.
func TestCutMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := kubeDNS()
		c := newCache(t, up, func(c *Cache) { levels(t, "learn cluster.local")(c); c.zonesLabel = "TestCutMetrics" })
		n := c.Counters("")
		// All caches with these labels share the counters.
		counts := func() map[string]float64 {
			return map[string]float64{
				"requests": testutil.ToFloat64(n.Requests), "misses": testutil.ToFloat64(n.Misses), "probes": testutil.ToFloat64(n.CutProbes),
				"type": testutil.ToFloat64(n.ByOther[0]), "below": testutil.ToFloat64(n.ByOther[1]),
			}
		}
		before := counts()
		play(t, c, up, "a.com.svc.cluster.local. A NXDOMAIN upstream", "a.com.svc.cluster.local. AAAA NXDOMAIN cached",
			"b.com.svc.cluster.local. A NXDOMAIN cached", "b.com.svc.cluster.local. AAAA NXDOMAIN cached")
		after := counts()
		for name, want := range map[string]float64{"requests": 4, "misses": 1, "probes": 1, "type": 1, "below": 2} {
			if got := after[name] - before[name]; got != want {
				t.Errorf("%s: %v, want %v", name, got, want)
			}
		}
	})
}

func TestLevelsOfBlock(t *testing.T) {
	for _, tc := range []struct {
		name, below string
		want        cut.Level
	}{
		{"one upstream", "forward . 127.0.0.1:1", cut.BelowToo},
		{"two upstreams", "forward a.example.org 127.0.0.1:1\nforward . 127.0.0.1:1", cut.PerType},
		{"hosts before an upstream", "hosts {\n127.0.0.1 a.example.org\nfallthrough\n}\nforward . 127.0.0.1:1", cut.PerType},
	} {
		inst := start(t, "example.org {\nbind 127.0.0.1\ncache {\nnxdomain cut\n}\n"+tc.below+"\n}")
		var got []cut.Level
		registry.Each(func(_ *engine.Engine, owners []*Cache) { got = append(got, owners[0].levels.Default) })
		if len(got) != 1 || got[0] != tc.want {
			t.Errorf("%s: levels %v, want %d", tc.name, got, tc.want)
		}
		stop(t, inst)
	}
}
