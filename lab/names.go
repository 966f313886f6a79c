package lab

import (
	"fmt"
	"net/netip"

	"github.com/miekg/dns"
)

// KubeDNSTTL is the TTL of every record kube-dns serves, in seconds: an hour.
// A cache that caps TTLs below it, or has held a record for a second, shows by
// that who answered, in every single answer and without changing the query.
const KubeDNSTTL = 3600

// A Responder is who answered a query.
type Responder string

// The responders of a lab node.
const (
	KubeDNS   Responder = "kube-dns"
	Trackless Responder = "trackless"
	Nobody    Responder = "nobody known"
)

// Identify tells who sent a response, from the TTLs of its records: kube-dns
// serves all of them with one hour, a cache with less. It needs a Corefile
// whose `cache` caps TTLs below an hour, and it cannot tell anything of a
// response without records, such as SERVFAIL.
func Identify(response *dns.Msg) Responder {
	lowest, records := uint32(KubeDNSTTL), 0
	for _, section := range [][]dns.RR{response.Answer, response.Ns} {
		for _, rr := range section {
			lowest = min(lowest, rr.Header().Ttl)
			records++
		}
	}
	switch {
	case records == 0:
		return Nobody
	case lowest == KubeDNSTTL:
		return KubeDNS
	}
	return Trackless
}

const zone = "lab.svc.cluster.local."

// kubeDNSCorefile is what runs in the kube-dns pod: an answer that follows
// from the name for every Service of the namespace "lab", NXDOMAIN for all
// else.
var kubeDNSCorefile = fmt.Sprintf(`.:53 {
    errors
    prometheus %[3]s
    template IN A %[1]s {
        match "^svc-(?P<a>[0-9]+)-(?P<b>[0-9]+)-(?P<c>[0-9]+)\."
        answer "{{ .Name }} %[2]d IN A 10.{{ .Group.a }}.{{ .Group.b }}.{{ .Group.c }}"
        fallthrough
    }
    template IN AAAA %[1]s {
        match "^svc-(?P<a>[0-9]+)-(?P<b>[0-9]+)-(?P<c>[0-9]+)\."
        answer "{{ .Name }} %[2]d IN AAAA fd00:10:{{ .Group.a }}:{{ .Group.b }}::{{ .Group.c }}"
        fallthrough
    }
    template IN ANY . {
        rcode NXDOMAIN
        authority "cluster.local. %[2]d IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 %[2]d"
    }
}
`, zone, KubeDNSTTL, KubeDNSMetrics)

// KubeDNSMetrics is where kube-dns serves its metrics, inside its pod.
const KubeDNSMetrics = "127.0.0.1:9153"

// A Name is a domain name and what kube-dns has for it: the zero addresses
// stand for NXDOMAIN.
type Name struct {
	Text    string
	A, AAAA netip.Addr
}

// hostCount is how many different names that exist hostName makes.
const hostCount = 100 * 250 * 250

// HostName returns the n-th name that exists, for n below hostCount.
func HostName(n int) Name {
	a, b, c := 100+n/(250*250), n/250%250, n%250
	return Name{
		Text: fmt.Sprintf("svc-%d-%d-%d.%s", a, b, c, zone),
		A:    netip.AddrFrom4([4]byte{10, byte(a), byte(b), byte(c)}),
		// The digits of the name, read as hexadecimal: what the template does.
		AAAA: netip.MustParseAddr(fmt.Sprintf("fd00:10:%d:%d::%d", a, b, c)),
	}
}

// AbsentName returns the n-th name that does not exist: a Service's full name
// with a search domain after it, which is what resolvers with ndots:5 ask.
func AbsentName(n int) Name {
	return Name{Text: HostName(n).Text + "svc.cluster.local."}
}

// Check returns an error unless the response is what kube-dns has for a
// question of the type about the name.
func (n Name) Check(response *dns.Msg, qtype uint16) error {
	want := n.A
	if qtype == dns.TypeAAAA {
		want = n.AAAA
	}
	if !want.IsValid() {
		if response.Rcode != dns.RcodeNameError {
			return fmt.Errorf("%s for %s, which does not exist", dns.RcodeToString[response.Rcode], n.Text)
		}
		return nil
	}
	if response.Rcode != dns.RcodeSuccess || len(response.Answer) != 1 {
		return fmt.Errorf("%s with %d records for %s", dns.RcodeToString[response.Rcode], len(response.Answer), n.Text)
	}
	var got netip.Addr
	switch rr := response.Answer[0].(type) {
	case *dns.A:
		got, _ = netip.AddrFromSlice(rr.A.To4())
	case *dns.AAAA:
		got, _ = netip.AddrFromSlice(rr.AAAA)
	}
	if got != want {
		return fmt.Errorf("%s has address %s in the answer, not %s", n.Text, got, want)
	}
	return nil
}
