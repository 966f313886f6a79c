package wire

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// TestDenial: the denial of a name becomes that of a name below it, in bytes and as a message.
func TestDenial(t *testing.T) {
	for _, tc := range []struct {
		name             string
		denied, question string
		authority        []string
		soa              string // as it must come back, empty: there is no denial
		edit             func(*dns.Msg)
	}{
		{name: "the same name", denied: "com.svc.example.org.", question: "com.svc.example.org.",
			authority: []string{"example.org. 9 IN SOA ns.dns.example.org. hostmaster.example.org. 1 2 3 4 5"},
			soa:       "example.org. 7 IN SOA ns.dns.example.org. hostmaster.example.org. 1 2 3 4 5"},
		{name: "below", denied: "com.svc.example.org.", question: "a.b.com.svc.example.org.",
			authority: []string{"example.org. 9 IN SOA ns.dns.example.org. hostmaster.example.org. 1 2 3 4 5"},
			soa:       "example.org. 7 IN SOA ns.dns.example.org. hostmaster.example.org. 1 2 3 4 5"},
		{name: "behind other records", denied: "com.example.org.", question: "a.com.example.org.",
			authority: []string{"example.org. 9 IN NS ns.example.net.", "example.org. 9 IN SOA ns.example.net. x.ns.example.net. 1 2 3 4 5"},
			soa:       "example.org. 7 IN SOA ns.example.net. x.ns.example.net. 1 2 3 4 5"},
		{name: "of the root", denied: "local.", question: "a.local.", authority: []string{". 9 IN SOA a.root-servers.net. b. 1 2 3 4 5"},
			soa: ". 7 IN SOA a.root-servers.net. b. 1 2 3 4 5"},
		{name: "another name", denied: "com.example.org.", question: "net.example.org.", authority: []string{"example.org. 9 IN SOA a. b. 1 2 3 4 5"}},
		{name: "another zone", denied: "com.example.org.", question: "a.com.example.org.", authority: []string{"example.net. 9 IN SOA a. b. 1 2 3 4 5"}},
		{name: "no SOA record", denied: "com.example.org.", question: "a.com.example.org.", authority: []string{"example.org. 9 IN NS a."}},
		{name: "NODATA", denied: "com.example.org.", question: "a.com.example.org.", authority: []string{"example.org. 9 IN SOA a. b. 1 2 3 4 5"},
			edit: func(m *dns.Msg) { m.Rcode = dns.RcodeSuccess }},
		{name: "alias", denied: "com.example.org.", question: "a.com.example.org.", authority: []string{"example.org. 9 IN SOA a. b. 1 2 3 4 5"},
			edit: func(m *dns.Msg) { m.Answer = records(t, "com.example.org. 9 IN CNAME a.") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := new(dns.Msg).SetQuestion(tc.denied, dns.TypeA)
			m.Response, m.Rcode, m.Authoritative, m.AuthenticatedData = true, dns.RcodeNameError, true, true
			m.Ns = records(t, tc.authority...)
			if tc.edit != nil {
				tc.edit(m)
			}
			packed, err := Pack(m)
			if err != nil {
				t.Fatal(err)
			}
			denied, _ := AppendName(nil, tc.denied)
			name, _ := AppendName(nil, tc.question)
			got, ok := packed.Denial(nil, denied, name)
			if !ok || tc.soa == "" {
				if ok != (tc.soa != "") {
					t.Fatalf("denial: %t", ok)
				}
				return
			}
			msg := query(t, tc.question, dns.TypeAAAA, func(m *dns.Msg) { m.AuthenticatedData = true })
			var q Query
			if r := q.Parse(msg); r != Plain {
				t.Fatal(r)
			}
			reply := make([]byte, q.ReplyLen(&got))
			q.Reply(reply, msg, &got, 7)
			fromBytes := new(dns.Msg)
			if err := fromBytes.Unpack(reply); err != nil {
				t.Fatal(err)
			}
			in := new(dns.Msg)
			if err := in.Unpack(msg); err != nil {
				t.Fatal(err)
			}
			fromMessage, err := got.Message(in, 7)
			if err != nil {
				t.Fatal(err)
			}
			want := new(dns.Msg).SetReply(in)
			want.Rcode, want.Authoritative, want.Ns = dns.RcodeNameError, true, records(t, tc.soa)
			for _, got := range []*dns.Msg{fromBytes, fromMessage} {
				if diff := cmp.Diff(withoutLengths(want), withoutLengths(got), sameMessage); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestChildOf(t *testing.T) {
	for _, tc := range []struct{ name, zone, want string }{
		{"a.b.example.org.", "example.org.", "b.example.org."},
		{"b.example.org.", "example.org.", "b.example.org."},
		{"example.org.", "example.org.", ""},
		{"b.example.net.", "example.org.", ""},
		{"a.org.", ".", "org."},
	} {
		name, _ := AppendName(nil, tc.name)
		zone, _ := AppendName(nil, tc.zone)
		got := ""
		if child := ChildOf(name, zone); child != nil {
			got = NameText(child)
		}
		if got != tc.want {
			t.Errorf("ChildOf(%s, %s) is %q, want %q", tc.name, tc.zone, got, tc.want)
		}
	}
}
