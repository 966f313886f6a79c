package wire

import (
	"testing"

	"github.com/miekg/dns"
)

func TestOwns(t *testing.T) {
	answer := func(t *testing.T, question string, sections [3][]string) (Answer, []byte) {
		t.Helper()
		m := new(dns.Msg).SetQuestion(question, dns.TypeA)
		for i, section := range []*[]dns.RR{&m.Answer, &m.Ns, &m.Extra} {
			for _, text := range sections[i] {
				rr, err := dns.NewRR(text)
				if err != nil {
					t.Fatal(err)
				}
				*section = append(*section, rr)
			}
		}
		a, err := Pack(m)
		if err != nil {
			t.Fatal(err)
		}
		name, err := AppendName(nil, question)
		if err != nil {
			t.Fatal(err)
		}
		return a, name
	}
	alias := [3][]string{
		{"www.example.org. 60 IN CNAME LB.example.net.", "lb.EXAMPLE.net. 60 IN CNAME a.lb.example.net.", "a.lb.example.net. 60 IN A 192.0.2.1"},
		{"example.net. 60 IN NS ns.example.net."},
		{"ns.example.net. 60 IN A 192.0.2.2", `a\.b.example.net. 60 IN TXT "a"`},
	}
	for _, tc := range []struct {
		name     string
		question string
		sections [3][]string
		owner    string
		want     bool
	}{
		{"question", "www.example.org.", alias, "www.example.org.", true},
		{"question with other letters", "WWW.example.org.", alias, "www.example.org.", true},
		{"target of an alias", "www.example.org.", alias, "lb.example.net.", true},
		{"end of the chain", "www.example.org.", alias, "a.lb.example.net.", true},
		{"additional", "www.example.org.", alias, "ns.example.net.", true},
		{"dot within a label", "www.example.org.", alias, `a\.b.example.net.`, true},
		{"authority", "www.example.org.", alias, "example.net.", false},
		{"parent", "www.example.org.", alias, "example.org.", false},
		{"only in RDATA", "example.org.", [3][]string{{"example.org. 60 IN MX 1 mail.example.org."}}, "mail.example.org.", false},
		{"root", ".", [3][]string{{". 60 IN NS ns.example.org."}}, ".", true},
		{"nothing", "www.example.org.", [3][]string{}, "www.example.org.", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, question := answer(t, tc.question, tc.sections)
			want, err := AppendName(nil, tc.owner)
			if err != nil {
				t.Fatal(err)
			}
			if got := a.Owns(question, func(owner []byte) bool { return string(owner) == string(want) }); got != tc.want {
				t.Errorf("owns %s: %t", tc.owner, got)
			}
			// Cut off anywhere it must not run over the end.
			for n := range a.Body {
				short := a
				short.Body = a.Body[:n]
				short.Owns(question, func([]byte) bool { return false })
			}
		})
	}
	loop := Answer{Counts: [3]uint16{1}, Body: []byte{0xc0, 21, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0}}
	if loop.Owns([]byte("\x03org\x00"), func([]byte) bool { return true }) {
		t.Error("a name that points to itself was expanded")
	}
}
