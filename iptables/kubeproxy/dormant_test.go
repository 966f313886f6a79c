//go:build privileged

package kubeproxy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
)

// TestServiceOfADormantTable: packets do not pass a dormant table.
func TestServiceOfADormantTable(t *testing.T) {
	cfg := Config{NetNS: int(testns.Enter(t))}
	rules := `table ip kube-proxy { FLAGS
	set cluster-ips { type ipv4_addr; elements = { 10.96.0.99 } }
	chain service-ABC-kube-system/kube-dns/udp/dns { accept; }
	map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.96.0.99 . udp . 53 : goto service-ABC-kube-system/kube-dns/udp/dns } }
}`
	for _, tc := range []struct {
		name, flags string
		want        bool
	}{{"awake", "", true}, {"dormant", "flags dormant;", false}} {
		testns.Feed(t, "table ip kube-proxy\ndelete table ip kube-proxy\n"+strings.Replace(rules, "FLAGS", tc.flags, 1), "nft", "-f", "-")
		service := netip.MustParseAddrPort("10.96.0.99:53")
		if got, err := IsService(cfg, service.Addr()); err != nil || got != tc.want {
			t.Errorf("%s: a Service: %t, %v", tc.name, got, err)
		}
		if got, err := HasEndpoints(cfg, service); err != nil || got != tc.want {
			t.Errorf("%s: with endpoints: %t, %v", tc.name, got, err)
		}
		if got, err := ServiceAddresses(cfg, "kube-system/kube-dns"); err != nil || len(got) == 1 != tc.want {
			t.Errorf("%s: addresses %v, %v", tc.name, got, err)
		}
	}
}
