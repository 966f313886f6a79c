//go:build privileged

package legacy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
)

func TestIsService(t *testing.T) {
	const rules = `*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-X - [0:0]
-A PREROUTING -d OTHER -j ACCEPT
-A KUBE-SERVICES -d NETWORK -j RETURN
-A KUBE-SERVICES -d ADDRESS -p udp -m comment --comment "kube-system/kube-dns:dns cluster IP" -m udp --dport 53 -j KUBE-SVC-X
COMMIT
`
	v4 := strings.NewReplacer("OTHER", "10.96.0.98/32", "NETWORK", "10.96.0.0/24", "ADDRESS", "10.96.0.99/32")
	v6 := strings.NewReplacer("OTHER", "fd00:10:96::62/128", "NETWORK", "fd00:10:96::/64", "ADDRESS", "fd00:10:96::63/128")
	for _, tc := range []struct {
		name, program, rules string
		want                 []string
	}{
		{"no kube-proxy", "", "", nil},
		{"IPv4", "iptables-legacy-restore", v4.Replace(rules), []string{"10.96.0.99"}},
		{"IPv6", "ip6tables-legacy-restore", v6.Replace(rules), []string{"fd00:10:96::63"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := Config{NetNS: int(testns.Enter(t))}
			if tc.program != "" {
				restore(t, tc.program, tc.rules)
			}
			var got []string
			for _, a := range []string{"10.96.0.0", "10.96.0.98", "10.96.0.99", "fd00:10:96::", "fd00:10:96::62", "fd00:10:96::63"} {
				is, err := IsService(cfg, netip.MustParseAddr(a))
				if err != nil {
					t.Fatal(err)
				}
				if is {
					got = append(got, a)
				}
			}
			if strings.Join(got, " ") != strings.Join(tc.want, " ") {
				t.Errorf("%v, want %v", got, tc.want)
			}
		})
	}
}
