package checks

import (
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestCheckNamesFit(t *testing.T) {
	own := identityOf(t)
	for _, zone := range []string{".", "cluster.local.", "10.in-addr.arpa."} {
		for _, label := range []string{CheckLabel, LeaseLabel} {
			name := own.Query(label, zone).Question[0].Name
			if _, ok := dns.IsDomainName(name); !ok || !dns.IsSubDomain(zone, name) {
				t.Errorf("%q is no name in zone %q", name, zone)
			}
			p, ok := own.ProbeOf(strings.ToUpper(name))
			if !ok || !p.Own || p.Lease != (label == LeaseLabel) || p.Check != (label == CheckLabel) {
				t.Errorf("%q in upper case: %+v, %v", name, p, ok)
			}
		}
	}
}

func identityOf(t *testing.T) *Identity {
	t.Helper()
	own, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return own
}
