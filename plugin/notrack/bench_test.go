package notrack

import (
	"context"
	"testing"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
)

// BenchmarkQuery is what each query costs above the cache.
func BenchmarkQuery(b *testing.B) {
	config, err := newConfiguration()
	if err != nil {
		b.Fatal(err)
	}
	next := plugin.HandlerFunc(func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) { return dns.RcodeSuccess, nil })
	n := &NoTrack{config: config, block: &dnsserver.Config{}, Next: next}
	w := &writer{remote: udp("10.244.0.11:4000"), local: udp("10.96.0.10:53")}
	r := new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = n.ServeDNS(b.Context(), w, r)
	}
}
