package searchpath

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testgolden"
)

func TestWalkOf(t *testing.T) {
	for _, tc := range []struct {
		name      string
		namespace string // empty: it begins no walk
		absolute  string
		others    []string
	}{
		{"api.example.com.default.svc.cluster.local.", "default.svc.cluster.local.", "api.example.com.",
			[]string{"api.example.com.svc.cluster.local.", "api.example.com.cluster.local.", "api.example.com.corp.example.org."}},
		{"example.com.default.svc.cluster.local.", "default.svc.cluster.local.", "example.com.",
			[]string{"example.com.svc.cluster.local.", "example.com.cluster.local.", "example.com.corp.example.org."}},
		// Only the namespace, which does not exist, tells this one from a first name.
		{"api.example.com.svc.cluster.local.", "com.svc.cluster.local.", "api.example.",
			[]string{"api.example.svc.cluster.local.", "api.example.cluster.local.", "api.example.corp.example.org."}},
		{name: "web.default.svc.cluster.local."},
		{name: "default.svc.cluster.local."},
		{name: "svc.cluster.local."},
		{name: "api.example.com.cluster.local."},
		{name: "api.example.com."},
		{name: "api.example.com.default.svc.cluster.org."},
		{name: "_sip._tcp.example.com.default.svc.cluster.local."},
		{name: "x._tcp.example.com.default.svc.cluster.local."},
		{name: `a\.b.example.com.default.svc.cluster.local.`},
	} {
		got, ok := walkOf(tc.name, "cluster.local.", []string{"corp.example.org."})
		if ok != (tc.namespace != "") || got.namespace != tc.namespace || got.absolute != tc.absolute || !slices.Equal(got.others, tc.others) {
			t.Errorf("%s: %+v, %t", tc.name, got, ok)
		}
	}
}

// TestWalkOfLongNames: a client cannot walk to a name that is too long.
func TestWalkOfLongNames(t *testing.T) {
	domain := strings.Repeat("a.", 20)
	if _, ok := walkOf(strings.Repeat("a23456789.", 22)+"x.svc.cluster.local.", "cluster.local.", []string{domain}); ok {
		t.Error("a walk with a name of more than 255 bytes")
	}
}

// cluster is what stands below: names with their records, those that fail, and the questions.
type cluster struct {
	have  map[string][]string
	fail  map[string]int // RCODE by name; -1: an error without a response
	asked []string
}

func (c *cluster) Name() string { return "cluster" }

func (c *cluster) ServeDNS(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := r.Question[0]
	name := strings.ToLower(q.Name)
	c.asked = append(c.asked, name+" "+dns.TypeToString[q.Qtype])
	m := new(dns.Msg).SetReply(r)
	m.RecursionAvailable = true
	switch rcode, failed := c.fail[name]; {
	case rcode < 0:
		return dns.RcodeServerFailure, errors.New("no response")
	case failed:
		m.Rcode = rcode
		return dns.RcodeSuccess, w.WriteMsg(m)
	}
	texts, exists := c.have[name]
	for _, text := range texts {
		rr, err := dns.NewRR(q.Name + " " + text)
		if err != nil {
			return dns.RcodeServerFailure, err
		}
		if rr.Header().Rrtype == q.Qtype || rr.Header().Rrtype == dns.TypeCNAME {
			m.Answer = append(m.Answer, rr)
		}
	}
	if len(m.Answer) == 0 || len(m.Answer) == 1 && strings.HasPrefix(name, "deniedalias.") {
		soa, err := dns.NewRR("cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 2 3 4 5")
		if err != nil {
			return dns.RcodeServerFailure, err
		}
		m.Ns = []dns.RR{soa}
		if !exists || len(m.Answer) > 0 {
			m.Rcode = dns.RcodeNameError
		}
	}
	return dns.RcodeSuccess, w.WriteMsg(m)
}

func newCluster() *cluster {
	return &cluster{fail: map[string]int{}, have: map[string][]string{
		"default.svc.cluster.local.":                         {},
		"api.example.com.":                                   {"300 IN A 192.0.2.1", "300 IN AAAA 2001:db8::1"},
		"v4.example.com.":                                    {"300 IN A 192.0.2.1"},
		"api.example.":                                       {"300 IN A 192.0.2.99"},
		"web.team.":                                          {"300 IN A 192.0.2.99"},
		"web.team.svc.cluster.local.":                        {"5 IN A 10.96.0.7"},
		"kubernetes.default.svc.":                            {"300 IN A 192.0.2.99"},
		"kubernetes.default.svc.cluster.local.":              {"5 IN A 10.96.0.1"},
		"host.corp.":                                         {"300 IN A 192.0.2.99"},
		"host.corp.corp.example.org.":                        {"60 IN A 192.0.2.2"},
		"own.example.com.":                                   {"300 IN A 192.0.2.99"},
		"own.example.com.default.svc.cluster.local.":         {"5 IN A 10.96.0.9"},
		"deniedalias.example.com.":                           {"300 IN A 192.0.2.99"},
		"deniedalias.example.com.default.svc.cluster.local.": {"5 IN CNAME nowhere."},
		"slow.example.com.":                                  {"300 IN A 192.0.2.1"},
		"slow.example.com.cluster.local.":                    nil,
		"hidden.default.svc.cluster.local.":                  nil,
	}}
}

func ask(t *testing.T, c *cluster, name string, qtype uint16, edit func(*dns.Msg)) *dns.Msg {
	t.Helper()
	c.asked = nil
	s := &SearchPath{Next: c, zone: "cluster.local.", domains: []string{"corp.example.org."}}
	r := new(dns.Msg).SetQuestion(name, qtype)
	if edit != nil {
		edit(r)
	}
	w := &client{}
	if _, err := s.ServeDNS(context.Background(), w, r); err != nil {
		t.Fatal(err)
	}
	if len(w.got) != 1 || w.got[0].Id != r.Id || w.got[0].Question[0] != r.Question[0] {
		t.Fatalf("%s: replies %v", name, w.got)
	}
	return w.got[0]
}

type client struct {
	test.ResponseWriter
	got []*dns.Msg
}

func (w *client) WriteMsg(m *dns.Msg) error {
	w.got = append(w.got, m)
	return nil
}

// TestServe has a row for each end of a walk.
func TestServe(t *testing.T) {
	const first = ".default.svc.cluster.local."
	for _, tc := range []struct {
		name  string
		qname string
		qtype uint16
		edit  func(*cluster)
		query func(*dns.Msg)
		rcode int
		want  []string // records
		alone bool     // only the query itself went down
	}{
		{name: "A", qname: "api.example.com" + first, want: []string{"5 CNAME api.example.com.", "300 A 192.0.2.1"}},
		{name: "AAAA", qname: "api.example.com" + first, qtype: dns.TypeAAAA, want: []string{"5 CNAME api.example.com.", "300 AAAA 2001:db8::1"}},
		{name: "the client's spelling", qname: "API.example.COM" + first, want: []string{"5 CNAME API.example.COM.", "300 A 192.0.2.1"}},
		{name: "no AAAA record", qname: "v4.example.com" + first, qtype: dns.TypeAAAA, want: []string{"5 CNAME v4.example.com."}},
		{name: "the absolute name is denied", qname: "no.example.com" + first, rcode: dns.RcodeNameError},
		{name: "the name itself exists", qname: "own.example.com" + first, want: []string{"5 A 10.96.0.9"}, alone: true},
		{name: "the name itself is an alias of a denied name", qname: "deniedalias.example.com" + first, rcode: dns.RcodeNameError, want: []string{"5 CNAME nowhere."}, alone: true},
		{name: "the second name exists: a Service of another namespace", qname: "web.team" + first, rcode: dns.RcodeNameError},
		{name: "the third name exists: a Service in full", qname: "kubernetes.default.svc" + first, rcode: dns.RcodeNameError},
		{name: "a name of the node's domain exists", qname: "host.corp" + first, rcode: dns.RcodeNameError},
		{name: "the second name of a walk", qname: "api.example.com.svc.cluster.local.", rcode: dns.RcodeNameError},
		{name: "a name on the way has no record of the type", qname: "v4.example.com" + first, edit: func(c *cluster) { c.have["v4.example.com.svc.cluster.local."] = nil }, rcode: dns.RcodeNameError},
		{name: "the query itself fails", qname: "api.example.com" + first, edit: func(c *cluster) { c.fail["api.example.com"+first] = dns.RcodeServerFailure }, rcode: dns.RcodeServerFailure, alone: true},
		{name: "the namespace fails", qname: "api.example.com" + first, edit: func(c *cluster) { c.fail["default.svc.cluster.local."] = dns.RcodeServerFailure }, rcode: dns.RcodeServerFailure},
		{name: "a name on the way fails", qname: "api.example.com" + first, edit: func(c *cluster) { c.fail["api.example.com.cluster.local."] = dns.RcodeServerFailure }, rcode: dns.RcodeServerFailure},
		{name: "no response to a name on the way", qname: "api.example.com" + first, edit: func(c *cluster) { c.fail["api.example.com.cluster.local."] = -1 }, rcode: dns.RcodeServerFailure},
		{name: "the absolute name fails", qname: "api.example.com" + first, edit: func(c *cluster) { c.fail["api.example.com."] = dns.RcodeRefused }, rcode: dns.RcodeServerFailure},
		{name: "DO", qname: "api.example.com" + first, query: func(m *dns.Msg) { m.SetEdns0(1232, true) }, rcode: dns.RcodeNameError, alone: true},
		{name: "CD", qname: "api.example.com" + first, query: func(m *dns.Msg) { m.CheckingDisabled = true }, rcode: dns.RcodeNameError, alone: true},
		{name: "letters of either case in the domain", qname: "api.example.com.DEFAULT.Svc.cLuster.LOCAL.", want: []string{"5 CNAME api.example.com.", "300 A 192.0.2.1"}},
		{name: "EDNS", qname: "api.example.com" + first, query: func(m *dns.Msg) { m.SetEdns0(1232, false) }, want: []string{"5 CNAME api.example.com.", "300 A 192.0.2.1"}},
		{name: "another class", qname: "api.example.com" + first, query: func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, rcode: dns.RcodeNameError, alone: true},
		{name: "ANY", qname: "api.example.com" + first, qtype: dns.TypeANY, rcode: dns.RcodeNameError, alone: true},
		{name: "a Service in full, without the final dot", qname: "kubernetes.default.svc.cluster.local" + first, want: []string{"5 CNAME kubernetes.default.svc.cluster.local.", "5 A 10.96.0.1"}},
		{name: "without RD", qname: "api.example.com" + first, query: func(m *dns.Msg) { m.RecursionDesired = false }, rcode: dns.RcodeNameError, alone: true},
		{name: "another type", qname: "api.example.com" + first, qtype: dns.TypeMX, rcode: dns.RcodeNameError, alone: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCluster()
			if tc.edit != nil {
				tc.edit(c)
			}
			if tc.qtype == 0 {
				tc.qtype = dns.TypeA
			}
			m := ask(t, c, tc.qname, tc.qtype, tc.query)
			var got []string
			for i, rr := range m.Answer {
				owner := tc.qname
				if cname, ok := m.Answer[0].(*dns.CNAME); ok && i > 0 {
					owner = cname.Target
				}
				if rr.Header().Name != owner {
					t.Errorf("record of %s, want %s", rr.Header().Name, owner)
				}
				got = append(got, fmt.Sprint(rr.Header().Ttl, " ", dns.TypeToString[rr.Header().Rrtype], " ", strings.TrimPrefix(rr.String(), rr.Header().String())))
			}
			if m.Rcode != tc.rcode || !slices.Equal(got, tc.want) {
				t.Errorf("%s %q, want %s %q", dns.RcodeToString[m.Rcode], got, dns.RcodeToString[tc.rcode], tc.want)
			}
			if alone := len(c.asked) == 1; alone != tc.alone {
				t.Errorf("asked %q", c.asked)
			}
			if tc.rcode == dns.RcodeSuccess && len(m.Answer) == 1 && tc.qtype == dns.TypeAAAA && len(m.Ns) != 1 {
				t.Errorf("no SOA record says why there is no answer: %v", m.Ns)
			}
		})
	}
}

// TestBothEndAlike: whatever happens, A and AAAA of one walk are both denied, or neither.
func TestBothEndAlike(t *testing.T) {
	for name := range newCluster().have {
		qname := name + "default.svc.cluster.local."
		if _, ok := walkOf(qname, "cluster.local.", nil); !ok {
			continue
		}
		c := newCluster()
		a, aaaa := ask(t, c, qname, dns.TypeA, nil), ask(t, c, qname, dns.TypeAAAA, nil)
		if a.Rcode != aaaa.Rcode {
			t.Errorf("%s: A is %s, and AAAA %s", qname, dns.RcodeToString[a.Rcode], dns.RcodeToString[aaaa.Rcode])
		}
	}
}

func TestParseErrors(t *testing.T) {
	var got strings.Builder
	for _, input := range []string{"searchpath", "searchpath cluster.local\nsearchpath cluster.local", "searchpath .", "searchpath cluster..local", "searchpath cluster.local {\ndomains a\n}"} {
		_, err := parse(caddy.NewTestController("dns", input))
		if err == nil {
			t.Fatalf("%q: accepted", input)
		}
		fmt.Fprintf(&got, "%q\n\t%v\n", input, err)
	}
	testgolden.Compare(t, "parse_errors.txt", got.String())
}

func TestParse(t *testing.T) {
	s, err := parse(caddy.NewTestController("dns", "searchpath Cluster.Local corp.example.org."))
	if err != nil || s.zone != "cluster.local." || !slices.Equal(s.domains, []string{"corp.example.org."}) {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestReadmeNamesTheMetric(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "* `coredns_searchpath_answers_total{server}`") {
		t.Error("the metric is not described")
	}
}
