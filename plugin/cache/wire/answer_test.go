package wire

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"
)

func record(t testing.TB, s string) dns.RR {
	t.Helper()
	rr, err := dns.NewRR(s)
	if err != nil {
		t.Fatal(err)
	}
	return rr
}

func records(t testing.TB, lines ...string) []dns.RR {
	rrs := make([]dns.RR, 0, len(lines))
	for _, l := range lines {
		rrs = append(rrs, record(t, l))
	}
	return rrs
}

// answers are messages of each shape, by name, to example.org. or below.
func answers(t testing.TB) map[string]*dns.Msg {
	reply := func(qname string, qtype uint16) *dns.Msg {
		m := new(dns.Msg)
		m.SetQuestion(qname, qtype)
		m.Response, m.RecursionAvailable = true, true
		return m
	}
	a := reply("www.example.org.", dns.TypeA)
	a.Answer = records(t, "www.example.org. 300 IN A 192.0.2.1")
	many := reply("www.example.org.", dns.TypeA)
	many.Answer = records(t, "www.example.org. 300 IN A 192.0.2.1", "www.example.org. 30 IN A 192.0.2.2", "www.example.org. 300 IN A 192.0.2.3", "www.example.org. 1 IN A 192.0.2.4")
	aaaa := reply("www.example.org.", dns.TypeAAAA)
	aaaa.Authoritative = true
	aaaa.Answer = records(t, "www.example.org. 300 IN AAAA 2001:db8::1", "www.example.org. 300 IN AAAA 2001:db8::2")
	one6 := reply("www.example.org.", dns.TypeAAAA)
	one6.Answer = records(t, "www.example.org. 300 IN AAAA 2001:db8::1")
	chain := reply("www.example.org.", dns.TypeA)
	chain.Answer = records(t, "www.example.org. 300 IN CNAME Edge.Example.org.", "Edge.Example.org. 60 IN CNAME edge.example.net.", "edge.example.net. 5 IN A 192.0.2.9")
	nx := reply("no.such.example.org.", dns.TypeA)
	nx.Rcode = dns.RcodeNameError
	nx.Ns = records(t, "example.org. 3600 IN SOA ns.Example.org. root.example.org. 1 2 3 4 5")
	nx.SetEdns0(1232, true)
	sections := reply("example.org.", dns.TypeMX)
	sections.AuthenticatedData = true
	sections.Answer = records(t, "example.org. 300 IN MX 10 mail.example.org.", `example.org. 300 IN TXT "a" "b"`)
	sections.Ns = records(t, "example.org. 300 IN NS ns.example.org.", "org. 300 IN NS ns.org.", ". 300 IN NS a.root-servers.net.")
	sections.Extra = records(t, "mail.example.org. 300 IN A 192.0.2.1", "_x._tcp.example.org. 300 IN SRV 1 2 3 mail.example.org.", "example.org. 300 IN TYPE65280 \\# 3 010203")
	service := reply("_dns._udp.kube-dns.kube-system.svc.cluster.local.", dns.TypeSRV)
	service.Answer = records(t, "_dns._udp.kube-dns.kube-system.svc.cluster.local. 5 IN SRV 0 100 53 kube-dns.kube-system.svc.cluster.local.")
	service.Extra = records(t, "kube-dns.kube-system.svc.cluster.local. 5 IN A 10.96.0.10")
	ptr := reply("10.0.96.10.in-addr.arpa.", dns.TypePTR)
	ptr.Answer = records(t, "10.0.96.10.in-addr.arpa. 5 IN PTR kube-dns.kube-system.svc.cluster.local.")
	referral := reply("www.example.org.", dns.TypeA)
	referral.Ns = records(t, "example.org. 5 IN NS ns1.example.org.", "example.org. 5 IN NS ns2.example.org.", `example.org. 5 IN NS a\;b.example.org.`)
	referral.Extra = records(t, "ns1.example.org. 5 IN A 192.0.2.1", "ns1.example.org. 5 IN AAAA 2001:db8::1", "ns2.example.org. 5 IN A 192.0.2.2")
	empty := reply("example.org.", dns.TypeA)
	empty.Rcode = dns.RcodeServerFailure
	root := reply(".", dns.TypeNS)
	root.Answer = records(t, ". 300 IN NS a.root-servers.net.", ". 300 IN NS b.root-servers.net.")
	escaped := reply(`a\.b.\000\200.example.org.`, dns.TypeTXT)
	escaped.Answer = records(t, `a\.b.\000\200.example.org. 300 IN TXT "x"`, `\000\200.example.org. 300 IN TXT "x"`)
	offClass := reply("www.example.org.", dns.TypeA)
	offClass.Answer = records(t, "www.example.org. 300 CH A 192.0.2.1", "www.example.org. 300 IN A 192.0.2.1")
	elsewhere := reply("www.example.org.", dns.TypeA)
	elsewhere.Answer = records(t, "other.example.org. 300 IN A 192.0.2.1")
	return map[string]*dns.Msg{
		"one A": a, "four A": many, "two AAAA": aaaa, "one AAAA": one6, "CNAME chain": chain, "NXDOMAIN": nx, "three sections": sections,
		"SRV": service, "PTR": ptr, "referral": referral, "SERVFAIL": empty, "root": root, "escaped": escaped, "mixed classes": offClass, "owner elsewhere": elsewhere,
	}
}

// expected is what the client must see of m: TTLs set, no OPT record, owner
// names that are the question name in the client's case.
func expected(m *dns.Msg, qname string, ttl uint32) *dns.Msg {
	m = m.Copy()
	old := m.Question[0].Name
	m.Question[0].Name = qname
	for _, section := range []*[]dns.RR{&m.Answer, &m.Ns, &m.Extra} {
		var rrs []dns.RR
		for _, rr := range *section {
			if rr.Header().Rrtype == dns.TypeOPT {
				continue
			}
			rr.Header().Ttl = ttl
			rr.Header().Rdlength = 0
			if owner := rr.Header().Name; owner != "." && dns.IsSubDomain(owner, old) && len(owner) <= len(old) && strings.EqualFold(old[len(old)-len(owner):], owner) {
				rr.Header().Name = qname[len(old)-len(owner):]
			}
			rrs = append(rrs, rr)
		}
		*section = rrs
	}
	return m
}

func withoutLengths(m *dns.Msg) *dns.Msg {
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			rr.Header().Rdlength = 0
		}
	}
	m.Compress = false
	return m
}

var sameMessage = cmp.Options{cmpopts.EquateEmpty()}

func TestReply(t *testing.T) {
	for name, m := range answers(t) {
		t.Run(name, func(t *testing.T) {
			a, err := Pack(m)
			if err != nil {
				t.Fatal(err)
			}
			qname := mixCase(m.Question[0].Name)
			for _, client := range []struct {
				name string
				edit func(*dns.Msg)
			}{
				{"plain", func(*dns.Msg) {}},
				{"no recursion", func(q *dns.Msg) { q.RecursionDesired = false }},
				{"CD and AD", func(q *dns.Msg) { q.CheckingDisabled, q.AuthenticatedData = true, true }},
				{"EDNS", func(q *dns.Msg) { q.SetEdns0(4096, false) }},
				{"DO", func(q *dns.Msg) { q.SetEdns0(1232, true) }},
			} {
				msg := query(t, qname, m.Question[0].Qtype, client.edit)
				var q Query
				if r := q.Parse(msg); r != Plain {
					t.Fatalf("%s: %v", client.name, r)
				}
				dst := make([]byte, q.ReplyLen(&a))
				if n := q.Reply(dst, msg, &a, 77); n != len(dst) {
					t.Fatalf("%s: %d bytes, ReplyLen says %d", client.name, n, len(dst))
				}
				got := new(dns.Msg)
				if err := got.Unpack(dst); err != nil {
					t.Fatalf("%s: %v", client.name, err)
				}
				in := new(dns.Msg)
				if err := in.Unpack(msg); err != nil {
					t.Fatal(err)
				}
				want := expected(m, qname, 77)
				want.Id, want.RecursionDesired, want.CheckingDisabled = in.Id, in.RecursionDesired, in.CheckingDisabled
				want.AuthenticatedData = m.AuthenticatedData && (in.AuthenticatedData || in.IsEdns0() != nil && in.IsEdns0().Do())
				if opt := in.IsEdns0(); opt != nil {
					want.Extra = append(want.Extra, opt)
				}
				if diff := cmp.Diff(want, withoutLengths(got), sameMessage); diff != "" {
					t.Errorf("%s (-want +got):\n%s", client.name, diff)
				}
			}
		})
	}
}

func TestMessage(t *testing.T) {
	for name, m := range answers(t) {
		t.Run(name, func(t *testing.T) {
			before := m.Copy()
			a, err := Pack(m)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, m, sameMessage); diff != "" {
				t.Errorf("Pack changed the message (-before +after):\n%s", diff)
			}
			q := new(dns.Msg)
			q.SetQuestion(mixCase(m.Question[0].Name), m.Question[0].Qtype)
			q.CheckingDisabled = true
			first, err := a.Message(q, 77)
			if err != nil {
				t.Fatal(err)
			}
			want := expected(m, q.Question[0].Name, 77)
			want.Id, want.CheckingDisabled = q.Id, true
			if diff := cmp.Diff(want, withoutLengths(first.Copy()), sameMessage); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			// A second message must not see what is done to the first, nor the
			// first what is done to the body.
			scribble(first)
			clear(a.Body[:0])
			second, err := a.Message(q, 77)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, withoutLengths(second.Copy()), sameMessage); diff != "" {
				t.Errorf("after the first was changed (-want +got):\n%s", diff)
			}
			snapshot := second.Copy()
			for i := range a.Body {
				a.Body[i] ^= 0xff
			}
			if diff := cmp.Diff(snapshot, second, sameMessage); diff != "" {
				t.Errorf("message shares memory with the body:\n%s", diff)
			}
		})
	}
}

func scribble(m *dns.Msg) {
	m.Question[0].Name = "changed."
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for i, rr := range section {
			rr.Header().Name, rr.Header().Ttl = "changed.", 1
			switch rr := rr.(type) {
			case *dns.A:
				clear(rr.A)
			case *dns.AAAA:
				clear(rr.AAAA)
			}
			section[i] = nil
		}
	}
}

func TestPackKeepsCaseOfRdata(t *testing.T) {
	m := answers(t)["CNAME chain"]
	a, err := Pack(m)
	if err != nil {
		t.Fatal(err)
	}
	q := new(dns.Msg)
	q.SetQuestion("WWW.EXAMPLE.ORG.", dns.TypeA)
	got, err := a.Message(q, 1)
	if err != nil {
		t.Fatal(err)
	}
	if target := got.Answer[0].(*dns.CNAME).Target; target != "Edge.Example.org." {
		t.Errorf("CNAME target %q has taken the case of the question", target)
	}
}

func TestPackSize(t *testing.T) {
	a, err := Pack(answers(t)["one A"])
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Body) != lenA || len(a.TTLs) != 2 {
		t.Errorf("one A record takes %d bytes and %d of offsets, want %d and 2", len(a.Body), len(a.TTLs), lenA)
	}
}

func TestPackRefuses(t *testing.T) {
	none := new(dns.Msg)
	two := new(dns.Msg)
	two.Question = make([]dns.Question, 2)
	long := new(dns.Msg)
	long.SetQuestion(strings.Repeat("a", 64)+".", dns.TypeA)
	bad := new(dns.Msg)
	bad.SetQuestion("example.org.", dns.TypeA)
	bad.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "no-final-dot", Rrtype: dns.TypeA, Class: dns.ClassINET}}}
	big := new(dns.Msg)
	big.SetQuestion("example.org.", dns.TypeTXT)
	for range 300 {
		big.Answer = append(big.Answer, &dns.TXT{Hdr: dns.RR_Header{Name: "example.org.", Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{strings.Repeat("x", 250)}})
	}
	for name, m := range map[string]*dns.Msg{"no question": none, "two questions": two, "name without wire format": long, "record that does not pack": bad, "over 64 KiB": big} {
		if _, err := Pack(m); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestReplyAllocates(t *testing.T) {
	a, err := Pack(answers(t)["CNAME chain"])
	if err != nil {
		t.Fatal(err)
	}
	msg := query(t, "www.example.org.", dns.TypeA, func(m *dns.Msg) { m.SetEdns0(1232, true) })
	var q Query
	dst := make([]byte, 512)
	if n := testing.AllocsPerRun(100, func() {
		if q.Parse(msg) == Plain {
			q.Reply(dst, msg, &a, 5)
		}
	}); n != 0 {
		t.Errorf("Parse and Reply allocate %v times", n)
	}
}

func TestMessageAllocates(t *testing.T) {
	for name, limit := range map[string]float64{"one A": 1, "one AAAA": 1, "two AAAA": 2, "four A": 3, "CNAME chain": 7, "NXDOMAIN": 4} {
		m := answers(t)[name]
		a, err := Pack(m)
		if err != nil {
			t.Fatal(err)
		}
		q := new(dns.Msg)
		q.SetQuestion(m.Question[0].Name, m.Question[0].Qtype)
		if n := testing.AllocsPerRun(100, func() {
			if _, err := a.Message(q, 5); err != nil {
				t.Error(err)
			}
		}); n > limit {
			t.Errorf("%s: %v allocations, at most %v", name, n, limit)
		}
	}
}

// mixCase turns every second letter to upper case.
func mixCase(s string) string {
	b := []byte(s)
	for i, c := range b {
		if i%2 == 0 && 'a' <= c && c <= 'z' {
			b[i] = c &^ 0x20
		}
	}
	return string(b)
}

// FuzzReply takes any message that miekg/dns reads, packs it as an answer and
// holds both ways back against miekg/dns.
func FuzzReply(f *testing.F) {
	for _, m := range answers(f) {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint32(1))
		m.Compress = true
		if b, err = m.Pack(); err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint32(1<<31))
	}
	f.Fuzz(func(t *testing.T, b []byte, ttl uint32) {
		m := new(dns.Msg)
		if m.Unpack(b) != nil || len(m.Question) != 1 || m.Opcode != dns.OpcodeQuery {
			return
		}
		a, err := Pack(m)
		if err != nil {
			return
		}
		// What miekg/dns packs and reads again is what it can say of m at all.
		want := m.Copy()
		want.Rcode &= 15
		want = expected(want, m.Question[0].Name, ttl)
		if want = viaWire(want); want == nil {
			return
		}
		q := new(dns.Msg)
		q.Id, q.Opcode, q.RecursionDesired, q.CheckingDisabled = m.Id, m.Opcode, m.RecursionDesired, m.CheckingDisabled
		q.Question = m.Question
		want.Response, want.Truncated, want.Zero = true, false, false

		got, err := a.Message(q, ttl)
		if err != nil {
			t.Fatalf("%v\nof %v", err, m)
		}
		if got = viaWire(got); got == nil || !bytes.Equal(canonical(want), canonical(got)) {
			t.Fatalf("message\n%v\nwant\n%v\n%s", got, want, cmp.Diff(want, got, sameMessage))
		}

		msg, err := q.Pack()
		if err != nil {
			return
		}
		var query Query
		if query.Parse(msg) != Plain {
			return
		}
		dst := make([]byte, query.ReplyLen(&a))
		query.Reply(dst, msg, &a, ttl)
		got = new(dns.Msg)
		if err := got.Unpack(dst); err != nil {
			t.Fatalf("reply %x: %v", dst, err)
		}
		want.AuthenticatedData = false
		if got = viaWire(got); got == nil || !bytes.Equal(canonical(want), canonical(got)) {
			t.Fatalf("reply\n%v\nwant\n%v", got, want)
		}
	})
}

// viaWire packs and unpacks m, or returns nil.
func viaWire(m *dns.Msg) *dns.Msg {
	m.Compress = false
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	out := new(dns.Msg)
	if out.Unpack(b) != nil {
		return nil
	}
	return out
}

// canonical is m as bytes without compression.
func canonical(m *dns.Msg) []byte {
	m.Compress = false
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

func BenchmarkParseReply(b *testing.B) {
	a, err := Pack(answers(b)["one A"])
	if err != nil {
		b.Fatal(err)
	}
	msg := query(b, "www.example.org.", dns.TypeA, func(m *dns.Msg) { m.SetEdns0(1232, false) })
	var q Query
	dst := make([]byte, 512)
	b.ReportAllocs()
	for b.Loop() {
		if q.Parse(msg) == Plain {
			q.Reply(dst, msg, &a, 5)
		}
	}
}
