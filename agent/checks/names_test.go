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

// A lease probe that was asked before Void is not answered any longer, a check and a later
// probe are.
func TestVoid(t *testing.T) {
	own := identityOf(t)
	name := func(label string) string { return own.Query(label, "cluster.local.").Question[0].Name }
	lease, check := name(LeaseLabel), name(CheckLabel)
	if p, _ := own.ProbeOf(lease); p.Void {
		t.Error("void at once")
	}
	own.Void()
	for _, tc := range []struct {
		what, name string
		want       bool
	}{
		{"a lease probe from before", lease, true},
		{"a check from before", check, false},
		{"a later lease probe", name(LeaseLabel), false},
		{"a lease probe without a number", LeaseLabel + own.id + ".cluster.local.", true},
	} {
		if p, ok := own.ProbeOf(tc.name); !ok || !p.Own || p.Void != tc.want {
			t.Errorf("%s: %+v, %v, want void %v", tc.what, p, ok, tc.want)
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
