package cut

import (
	"fmt"
	"testing"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

func TestShown(t *testing.T) {
	long := []string{}
	for i := range 20 {
		long = append(long, fmt.Sprintf("n%d.example.org. 60 IN CNAME n%d.example.org.", i, i+1))
	}
	for _, tc := range []struct {
		name    string
		records []string
		want    int
		last    string
	}{
		{"no record", nil, 1, "www.example.com."},
		{"an address", []string{"WWW.example.com. 60 IN A 192.0.2.1", "www.example.com. 60 IN A 192.0.2.2"}, 1, "www.example.com."},
		{"a chain of aliases", []string{"www.example.com. 60 IN CNAME a.example.net.", "a.example.net. 60 IN CNAME b.example.org.", "b.example.org. 60 IN A 192.0.2.1", "b.example.org. 60 IN A 192.0.2.2"}, 3, "b.example.org."},
		{"an alias to a denied name", []string{"www.example.com. 60 IN CNAME gone.example.net."}, 1, "www.example.com."},
		{"a long chain", long, maxShown, "n6.example.org."},
	} {
		m := new(dns.Msg)
		for _, text := range tc.records {
			rr, err := dns.NewRR(text)
			if err != nil {
				t.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		key, err := wire.AppendKey(nil, "www.example.com.", dns.TypeA, dns.ClassINET, 0)
		if err != nil {
			t.Fatal(err)
		}
		names := Shown(m, key)
		if last := wire.NameText(names[len(names)-1]); len(names) != tc.want || last != tc.last {
			t.Errorf("%s: %d names, the last is %s; want %d, %s", tc.name, len(names), last, tc.want, tc.last)
		}
	}
}
