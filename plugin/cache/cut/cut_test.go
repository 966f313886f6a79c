package cut

import (
	"slices"
	"testing"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

const (
	kubernetes = "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"
	company    = "corp.example.com. 60 IN SOA ns1.example.com. root.example.com. 1 7200 1800 86400 60"
)

func name(t testing.TB, text string) []byte {
	t.Helper()
	n, err := wire.AppendName(nil, text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// denial is an NXDOMAIN response for the name and its key.
func denial(t testing.TB, qname string, qtype uint16, bits wire.Bits, authority ...string) (*dns.Msg, wire.Key) {
	t.Helper()
	m := new(dns.Msg).SetQuestion(qname, qtype)
	m.Response, m.Rcode = true, dns.RcodeNameError
	for _, text := range authority {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		m.Ns = append(m.Ns, rr)
	}
	key, err := wire.AppendKey(nil, qname, qtype, dns.ClassINET, bits)
	if err != nil {
		t.Fatal(err)
	}
	return m, key
}

// read returns the denial of a name and a type, A if it is 0, and the zone that the operator
// has named, nil if zone is empty.
func read(t testing.TB, qname string, qtype uint16, soa, zone string) (d Denial, named []byte) {
	t.Helper()
	if qtype == 0 {
		qtype = dns.TypeA
	}
	if zone != "" {
		named = name(t, zone)
	}
	m, key := denial(t, qname, qtype, 0, soa)
	d, ok := Read(m, key)
	if !ok {
		t.Fatalf("%s: not read", qname)
	}
	return d, named
}

// TestScope has a row for each denial that is trusted more or less than others. The first
// rows are what CoreDNS's plugin kubernetes answers.
func TestScope(t *testing.T) {
	for _, tc := range []struct {
		name  string
		soa   string
		qtype uint16
		named string
		want  Scope
	}{
		{name: "com.cluster.local.", soa: kubernetes, want: Below},
		{name: "com.svc.cluster.local.", soa: kubernetes, want: Below},
		{name: "COM.SVC.Cluster.Local.", soa: kubernetes, want: Below},
		{name: "com.default.svc.cluster.local.", soa: kubernetes, want: Below},
		{name: "com.svc.cluster.local.", soa: kubernetes, qtype: dns.TypeAAAA, want: Below},
		{name: "api.example.com.default.svc.cluster.local.", soa: kubernetes, want: Below},
		{name: "svc.cluster.local.", soa: kubernetes, qtype: dns.TypeTXT, want: Question},
		{name: "default.svc.cluster.local.", soa: kubernetes, qtype: dns.TypeTXT, want: Question},
		{name: "cluster.local.", soa: kubernetes, qtype: dns.TypeTXT, want: Question},
		{name: "x.default.svc.cluster.local.", soa: kubernetes, qtype: dns.TypeSRV, want: Question},
		{name: "svc.cluster.local.", soa: kubernetes, want: Addresses},
		{name: "pod.cluster.local.", soa: kubernetes, want: Addresses},
		{name: "dns.cluster.local.", soa: kubernetes, want: Addresses},
		{name: "dns-version.cluster.local.", soa: kubernetes, want: Addresses},
		{name: "1-2-3-4.default.pod.cluster.local.", soa: kubernetes, want: Addresses},
		{name: "example.com.cluster.local.", soa: kubernetes, want: Addresses},
		{name: "_tcp.kubernetes.default.svc.cluster.local.", soa: kubernetes, want: Addresses},
		{name: "x._tcp.kubernetes.default.svc.cluster.local.", soa: kubernetes, want: Addresses},
		{name: "_tcp.cluster.local.", soa: kubernetes, want: Addresses},
		{name: "96.10.in-addr.arpa.", soa: "10.in-addr.arpa. 5 IN SOA ns.dns.10.in-addr.arpa. hostmaster.10.in-addr.arpa. 1 2 3 4 5", want: Question},
		{name: "0.d.f.ip6.arpa.", soa: "d.f.ip6.arpa. 5 IN SOA ns.example.org. root.example.org. 1 2 3 4 5", want: Question},

		{name: "com.corp.example.com.", soa: company, want: Unproven},
		{name: "com.corp.example.com.", soa: company, named: "corp.example.com.", want: Below},
		{name: "com.corp.example.com.", soa: company, qtype: dns.TypeTXT, named: "corp.example.com.", want: Name},
		{name: "com.sub.corp.example.com.", soa: company, want: Name},
		{name: "com.sub.corp.example.com.", soa: company, named: "sub.corp.example.com.", want: Below},
		{name: "example.com.corp.example.com.", soa: company, named: "corp.example.com.", want: Name},
		{name: "_tcp.corp.example.com.", soa: company, want: Question},
		{name: "corp.example.com.", soa: company, want: Question},
		{name: "www.example.com.", soa: company, want: Question},
		{name: "notcorp.example.com.", soa: company, want: Question},
		// The root denies local, and a resolver has cluster.local all the same.
		{name: "local.", soa: ". 60 IN SOA a.root-servers.net. nstld.verisign-grs.com. 1 2 3 4 60", want: Name},
		{name: "acme.local.", soa: ". 60 IN SOA a.root-servers.net. nstld.verisign-grs.com. 1 2 3 4 60", want: Name},
		{name: "corp.com.", soa: "com. 60 IN SOA a.gtld-servers.net. nstld.verisign-grs.com. 1 2 3 4 60", want: Name},
		{name: "com.c.acme.internal.", soa: "internal. 60 IN SOA ns.internal. root.internal. 1 2 3 4 60", named: "c.acme.internal.", want: Below},
		// Only both names of the SOA record make a zone one of CoreDNS.
		{name: "x.y.example.org.", soa: "example.org. 60 IN SOA ns.dns.example.org. root.example.org. 1 2 3 4 60", qtype: dns.TypeTXT, want: Name},
	} {
		d, named := read(t, tc.name, tc.qtype, tc.soa, tc.named)
		if got := d.Scope(named); got != tc.want {
			t.Errorf("%s %s, named %q: scope %d, want %d", tc.name, dns.Type(d.Type), tc.named, got, tc.want)
		}
	}
}

// TestRead has a row for each response that denies nothing but its question.
func TestRead(t *testing.T) {
	const sig = "corp.example.com. 60 IN RRSIG SOA 8 3 60 20300101000000 20200101000000 1 corp.example.com. AAAA"
	for _, tc := range []struct {
		name      string
		bits      wire.Bits
		authority []string
		edit      func(*dns.Msg)
		ok        bool
	}{
		{name: "denial", authority: []string{company}, ok: true},
		{name: "denial for DO of a zone without signatures", bits: wire.DO, authority: []string{company}, ok: true},
		{name: "signed, and nobody asked", authority: []string{company, sig}, ok: true},
		{name: "signed", bits: wire.DO, authority: []string{company, sig}},
		{name: "NSEC", bits: wire.DO, authority: []string{company, "a.corp.example.com. 60 IN NSEC b.corp.example.com. A"}},
		{name: "no SOA record"},
		{name: "two SOA records", authority: []string{company, kubernetes}},
		{name: "NODATA", authority: []string{company}, edit: func(m *dns.Msg) { m.Rcode = dns.RcodeSuccess }},
		{name: "behind an alias", authority: []string{company}, edit: func(m *dns.Msg) {
			m.Answer = []dns.RR{&dns.CNAME{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET}, Target: "x."}}
		}},
		{name: "behind a DNAME", authority: []string{company}, edit: func(m *dns.Msg) {
			m.Answer = []dns.RR{&dns.DNAME{Hdr: dns.RR_Header{Name: "corp.example.com.", Rrtype: dns.TypeDNAME, Class: dns.ClassINET}, Target: "x."}}
		}},
		{name: "for a subnet", bits: wire.Subnet, authority: []string{company}},
	} {
		m, key := denial(t, "com.corp.example.com.", dns.TypeA, tc.bits, tc.authority...)
		if tc.edit != nil {
			tc.edit(m)
		}
		if _, ok := Read(m, key); ok != tc.ok {
			t.Errorf("%s: read %t, want %t", tc.name, ok, tc.ok)
		}
	}
	m, key := denial(t, "com.corp.example.com.", dns.TypeA, 0, company)
	chaos := slices.Clone(key)
	chaos[len(chaos)-2] = dns.ClassCHAOS
	if _, ok := Read(m, chaos); ok {
		t.Error("a denial of class CH was read")
	}
}

func TestCandidates(t *testing.T) {
	for _, tc := range []struct {
		name, soa, named string
		qtype            uint16
		want             []string
	}{
		{name: "api.example.com.default.svc.cluster.local.", soa: kubernetes,
			want: []string{"default.svc.cluster.local.", "com.default.svc.cluster.local.", "example.com.default.svc.cluster.local."}},
		{name: "api.example.com.svc.cluster.local.", soa: kubernetes, want: []string{"com.svc.cluster.local.", "example.com.svc.cluster.local."}},
		{name: "api.example.com.cluster.local.", soa: kubernetes, want: []string{"com.cluster.local."}},
		{name: "com.cluster.local.", soa: kubernetes},
		{name: "x.ns.dns.cluster.local.", soa: kubernetes},
		{name: "x.1-2-3-4.default.pod.cluster.local.", soa: kubernetes},
		{name: "api.example.com.svc.cluster.local.", soa: kubernetes, qtype: dns.TypeSRV},
		{name: "_https._tcp.x.default.svc.cluster.local.", soa: kubernetes, want: []string{"default.svc.cluster.local.", "x.default.svc.cluster.local."}},
		{name: "api.example.com.corp.example.com.", soa: company},
		{name: "api.example.com.corp.example.com.", soa: company, named: "corp.example.com.", want: []string{"com.corp.example.com."}},
		{name: "4.3.2.1.in-addr.arpa.", soa: "in-addr.arpa. 60 IN SOA a. b. 1 2 3 4 5", named: "in-addr.arpa."},
	} {
		d, named := read(t, tc.name, tc.qtype, tc.soa, tc.named)
		var got []string
		for _, n := range d.Candidates(named) {
			got = append(got, wire.NameText(n))
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestProves(t *testing.T) {
	for _, tc := range []struct{ name, soa, want string }{
		{"api.com.corp.example.com.", company, "com.corp.example.com."},
		{"a.b.api.com.corp.example.com.", company, "com.corp.example.com."},
		{"com.corp.example.com.", company, ""},
		{"x.local.", "local. 60 IN SOA a. b. 1 2 3 4 5", ""},
		{"a.b.example.org.", company, ""},
	} {
		m, key := denial(t, tc.name, dns.TypeA, 0, tc.soa)
		d, ok := Read(m, key)
		if !ok {
			t.Fatalf("%s: not read", tc.name)
		}
		got := ""
		if n, ok := d.Proves(); ok {
			got = wire.NameText(n)
		}
		if got != tc.want {
			t.Errorf("%s proves %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestLevels(t *testing.T) {
	l := Levels{Default: BelowToo}
	for _, args := range [][]string{{"learn", "cluster.local."}, {"type", "example.org.", "old.example.net"}, {"cut", "new.example.org."}, {"name"}} {
		if err := l.Add(args...); err != nil {
			t.Fatal(err)
		}
	}
	for text, want := range map[string]Level{
		"a.cluster.local.": Learn, "cluster.local.": Learn, "local.": PerName, "www.example.org.": PerType,
		"a.new.example.org.": BelowToo, "a.old.example.net.": PerType, ".": PerName,
	} {
		if got, _ := l.Of(name(t, text)); got != want {
			t.Errorf("%s: level %d, want %d", text, got, want)
		}
	}
	if z := l.Named(name(t, "x.cluster.local.")); wire.NameText(z) != "cluster.local." {
		t.Errorf("named %q", z)
	}
	if z := l.Named(name(t, "a.new.example.org.")); z != nil {
		t.Errorf("named %q, although nothing is learned there", z)
	}
}

func TestExisting(t *testing.T) {
	e := NewExisting(4096)
	if e.Bytes() > 4096 {
		t.Errorf("%d bytes", e.Bytes())
	}
	e.Add(name(t, "www.sub.example.org."), 100)
	e.Add(name(t, "www.sub.example.org."), 50) // an older answer shortens nothing
	for text, want := range map[string]bool{
		"www.sub.example.org.": true, "sub.example.org.": true, "example.org.": true, "org.": true, "ww.sub.example.org.": false, "example.net.": false,
	} {
		if got := e.Has(name(t, text), 99); got != want {
			t.Errorf("%s: %t, want %t", text, got, want)
		}
		if e.Has(name(t, text), 100) {
			t.Errorf("%s is remembered too long", text)
		}
	}
}

// TestExistingInherits: a memory of any size knows what the one before it knew.
func TestExistingInherits(t *testing.T) {
	for _, sizes := range [][2]int{{1 << 12, 1 << 12}, {1 << 12, 1 << 8}, {1 << 8, 1 << 12}} {
		from, to := NewExisting(sizes[0]), NewExisting(sizes[1])
		from.Add(name(t, "a.example.org."), 100)
		from.Add(name(t, "early.example.net."), 10)
		to.Inherit(from, -20)
		for text, want := range map[string]bool{"a.example.org.": true, "example.org.": true, "early.example.net.": false} {
			if got := to.Has(name(t, text), 79); got != want {
				t.Errorf("sizes %v: %s exists: %t", sizes, text, got)
			}
		}
		if to.Has(name(t, "a.example.org."), 80) {
			t.Errorf("sizes %v: it exists for too long", sizes)
		}
	}
}

// TestExistingForgetsNothing fills the memory many times over.
func TestExistingForgetsNothing(t *testing.T) {
	e := NewExisting(64)
	first := name(t, "first.example.org.")
	e.Add(first, 100)
	for i := range 200 {
		e.Add([]byte{1, byte(i), 0}, uint32(i))
	}
	if !e.Has(first, 99) {
		t.Error("a name is forgotten early")
	}
}

func BenchmarkExisting(b *testing.B) {
	e := NewExisting(64 << 10)
	n := name(b, "api.example.com.default.svc.cluster.local.")
	b.ReportAllocs()
	for b.Loop() {
		e.Add(n, 100)
		if !e.Has(n, 1) {
			b.Fatal("forgotten")
		}
	}
}
