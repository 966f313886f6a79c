package lab

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

func TestIdentify(t *testing.T) {
	tests := []struct {
		name    string
		answer  []string
		ns      []string
		because Responder
	}{
		{"kube-dns", []string{"a. 3600 IN A 10.0.0.1"}, nil, KubeDNS},
		{"kube-dns, negative", nil, []string{"a. 3600 IN SOA b. c. 1 2 3 4 5"}, KubeDNS},
		{"a cache", []string{"a. 30 IN A 10.0.0.1"}, nil, Trackless},
		{"a cache, negative", nil, []string{"a. 5 IN SOA b. c. 1 2 3 4 5"}, Trackless},
		{"a cache, at the end of the TTL", []string{"a. 0 IN A 10.0.0.1"}, nil, Trackless},
		{"one record older than the other", []string{"a. 3600 IN A 10.0.0.1", "a. 3599 IN A 10.0.0.2"}, nil, Trackless},
		{"no records", nil, nil, Nobody},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			response := new(dns.Msg)
			for _, text := range test.answer {
				response.Answer = append(response.Answer, record(t, text))
			}
			for _, text := range test.ns {
				response.Ns = append(response.Ns, record(t, text))
			}
			if got := Identify(response); got != test.because {
				t.Errorf("got %s, want %s", got, test.because)
			}
		})
	}
}

func TestNameCheck(t *testing.T) {
	host, missing := HostName(0), AbsentName(0)
	tests := []struct {
		name   string
		asked  Name
		qtype  uint16
		rcode  int
		answer []string
		right  bool
	}{
		{"address", host, dns.TypeA, dns.RcodeSuccess, []string{host.Text + " 30 IN A 10.100.0.0"}, true},
		{"IPv6 address", host, dns.TypeAAAA, dns.RcodeSuccess, []string{host.Text + " 30 IN AAAA fd00:10:100:0::0"}, true},
		{"no such name", missing, dns.TypeA, dns.RcodeNameError, nil, true},
		{"another address", host, dns.TypeA, dns.RcodeSuccess, []string{host.Text + " 30 IN A 10.100.0.1"}, false},
		{"the other type", host, dns.TypeAAAA, dns.RcodeSuccess, []string{host.Text + " 30 IN A 10.100.0.0"}, false},
		{"two addresses", host, dns.TypeA, dns.RcodeSuccess, []string{host.Text + " 30 IN A 10.100.0.0", host.Text + " 30 IN A 10.100.0.0"}, false},
		{"empty", host, dns.TypeA, dns.RcodeSuccess, nil, false},
		{"failure", host, dns.TypeA, dns.RcodeServerFailure, nil, false},
		{"an address for a missing name", missing, dns.TypeA, dns.RcodeSuccess, []string{missing.Text + " 30 IN A 10.100.0.0"}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			response := &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: test.rcode}}
			for _, text := range test.answer {
				response.Answer = append(response.Answer, record(t, text))
			}
			if err := test.asked.Check(response, test.qtype); (err == nil) != test.right {
				t.Errorf("check returned %v", err)
			}
		})
	}
}

func TestNamesDiffer(t *testing.T) {
	seen := make(map[string]bool)
	addresses := make(map[netip.Addr]bool)
	for _, n := range []int{0, 1, 249, 250, 251, 62499, 62500, hostCount - 1} {
		name := HostName(n)
		if seen[name.Text] || addresses[name.A] || addresses[name.AAAA] {
			t.Errorf("name %d, %v, is like an earlier one", n, name)
		}
		seen[name.Text], addresses[name.A], addresses[name.AAAA] = true, true, true
		if _, ok := dns.IsDomainName(name.Text); !ok {
			t.Errorf("name %d, %q, is not a domain name", n, name.Text)
		}
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
