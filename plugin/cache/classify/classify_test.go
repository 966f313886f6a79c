package classify

import (
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/pkg/response"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/store"
)

// TestType has a row for each kind of response: its type, whether it may be stored, and
// whether it answers its question.
func TestType(t *testing.T) {
	const (
		address = "www.example.org. 300 IN A 192.0.2.1"
		alias   = "www.example.org. 300 IN CNAME a.example.org."
		target  = "a.example.org. 300 IN A 192.0.2.1"
		soa     = "example.org. 300 IN SOA ns.example.org. root.example.org. 1 2 3 4 300"
		ns      = "example.org. 300 IN NS ns.example.org."
	)
	for _, tc := range []struct {
		name      string
		edit      func(*dns.Msg)
		answer    []string
		authority []string
		want      response.Type
		storable  bool
		answers   bool
		kind      store.Kind
	}{
		{name: "an address", answer: []string{address}, want: response.NoError, storable: true, answers: true, kind: store.Positive},
		{name: "an alias and its target", answer: []string{target, alias}, want: response.NoError, storable: true, answers: true, kind: store.Positive},
		{name: "an alias without its target", answer: []string{alias}, want: response.NoError, kind: store.Positive},
		{name: "an alias to a name without addresses", answer: []string{alias}, authority: []string{soa}, want: response.NoData, storable: true, kind: store.Negative},
		{name: "two aliases of one name", answer: []string{alias, "www.example.org. 300 IN CNAME b.example.org.", target}, want: response.NoError, kind: store.Positive},
		{name: "aliases in a circle", answer: []string{alias, "a.example.org. 300 IN CNAME www.example.org."}, want: response.NoError, kind: store.Positive},
		{name: "another name", answer: []string{target}, want: response.NoError, kind: store.Positive},
		{name: "no addresses", authority: []string{soa}, want: response.NoData, storable: true, kind: store.Negative},
		{name: "no such name", edit: func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }, authority: []string{soa}, want: response.NameError, storable: true, kind: store.Negative},
		{name: "an alias to no such name", edit: func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }, answer: []string{alias}, authority: []string{soa}, want: response.NameError, storable: true, kind: store.Negative},
		{name: "a delegation", authority: []string{ns}, want: response.Delegation, storable: true, kind: store.Positive},
		{name: "a failure", edit: func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }, want: response.ServerError, storable: true, kind: store.Negative},
		{name: "refused", edit: func(m *dns.Msg) { m.Rcode = dns.RcodeRefused }, want: response.OtherError, kind: store.Negative},
		{name: "cut off", edit: func(m *dns.Msg) { m.Truncated = true }, answer: []string{address}, want: response.NoError, answers: true, kind: store.Positive},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA)
			m.Response = true
			for _, s := range tc.answer {
				m.Answer = append(m.Answer, record(t, s))
			}
			for _, s := range tc.authority {
				m.Ns = append(m.Ns, record(t, s))
			}
			if tc.edit != nil {
				tc.edit(m)
			}
			now := time.Now()
			got := Type(m, now)
			if got != tc.want || Storable(m, got) != tc.storable || Answers(m) != tc.answers || Kind(got) != tc.kind {
				t.Errorf("%v, may be stored %t as %v, answers %t; want %v, %t as %v, %t",
					got, Storable(m, got), Kind(got), Answers(m), tc.want, tc.storable, tc.kind, tc.answers)
			}
			if want := tc.storable && tc.answers; Usable(m, now) != want {
				t.Errorf("usable %t, want %t", !want, want)
			}
			if !AnswersTo(m, dns.Question{Name: "WWW.example.org.", Qtype: dns.TypeA, Qclass: dns.ClassINET}) {
				t.Error("it is not the response to its question")
			}
		})
	}
}

func record(t *testing.T, text string) dns.RR {
	t.Helper()
	rr, err := dns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	return rr
}
