//go:build privileged

package kubeproxy

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
)

func TestIsService(t *testing.T) {
	const nftablesMode = `table ip kube-proxy {
	set cluster-ips { type ipv4_addr; elements = { 10.96.0.1, 10.96.0.99 } }
}
table ip6 kube-proxy {
	set cluster-ips { type ipv6_addr; elements = { fd00:10:96::63 } }
}`
	const iptablesMode = `*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-X - [0:0]
-A KUBE-SERVICES -d ADDRESS -p udp -m comment --comment "kube-system/kube-dns:dns cluster IP" -m udp --dport 53 -j KUBE-SVC-X
COMMIT
`
	for _, tc := range []struct {
		name    string
		program []string
		rules   string
	}{
		{"no kube-proxy", nil, ""},
		{"nftables mode", []string{"nft", "-f", "-"}, nftablesMode},
		{"iptables mode, IPv4", []string{"iptables-nft-restore", "--noflush"}, strings.Replace(iptablesMode, "ADDRESS", "10.96.0.99/32", 1)},
		{"iptables mode, IPv6", []string{"ip6tables-nft-restore", "--noflush"}, strings.Replace(iptablesMode, "ADDRESS", "fd00:10:96::63/128", 1)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := Config{NetNS: int(testns.Enter(t))}
			if tc.program != nil {
				testns.Program(t, tc.program[0])
				cmd := exec.Command(tc.program[0], tc.program[1:]...)
				cmd.Stdin = strings.NewReader(tc.rules)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v: %v\n%s", tc.program, err, out)
				}
			}
			for _, addr := range []string{"10.96.0.99", "fd00:10:96::63", "10.96.0.98", "fd00:10:96::62"} {
				got, err := IsService(cfg, netip.MustParseAddr(addr))
				if err != nil {
					t.Fatal(err)
				}
				if want := strings.Contains(tc.rules, addr+"/") || strings.Contains(tc.rules, addr+" "); got != want {
					t.Errorf("%s: %v, want %v", addr, got, want)
				}
			}
		})
	}
}
