//go:build privileged

package kubeproxy

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
)

func TestServiceAddresses(t *testing.T) {
	nftablesMode := ""
	for _, f := range []struct{ family, typ, addr, other string }{
		{"ip", "ipv4_addr", "10.96.0.99", "10.96.0.10"}, {"ip6", "ipv6_addr", "fd00:10:96::63", "fd00:10:96::a"},
	} {
		nftablesMode += fmt.Sprintf(`table %[1]s kube-proxy {
	chain service-AAAAAAAA-kube-system/kube-dns-upstream/udp/dns { }
	chain service-BBBBBBBB-kube-system/kube-dns-upstream/tcp/dns-tcp { }
	chain service-CCCCCCCC-kube-system/kube-dns/udp/dns { }
	chain service-DDDDDDDD-other/kube-dns-upstream/udp/dns { }
	map service-ips {
		type %[2]s . inet_proto . inet_service : verdict
		elements = {
			%[3]s . udp . 53 : goto service-AAAAAAAA-kube-system/kube-dns-upstream/udp/dns,
			%[3]s . tcp . 53 : goto service-BBBBBBBB-kube-system/kube-dns-upstream/tcp/dns-tcp,
			%[4]s . udp . 5353 : goto service-CCCCCCCC-kube-system/kube-dns/udp/dns,
			%[4]s . udp . 54 : goto service-DDDDDDDD-other/kube-dns-upstream/udp/dns
		}
	}
}
`, f.family, f.typ, f.addr, f.other)
	}
	const iptablesMode = `*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-X - [0:0]
-A KUBE-SERVICES -d ADDRESS -p udp -m comment --comment "kube-system/kube-dns-upstream:dns cluster IP" -m udp --dport 53 -j KUBE-SVC-X
-A KUBE-SERVICES -d ADDRESS -p tcp -m comment --comment "kube-system/kube-dns-upstream:dns-tcp cluster IP" -m tcp --dport 53 -j KUBE-SVC-X
-A KUBE-SERVICES -d OTHER -p udp -m comment --comment "kube-system/kube-dns:dns cluster IP" -m udp --dport 53 -j KUBE-SVC-X
COMMIT
`
	v4 := strings.NewReplacer("ADDRESS", "10.96.0.99/32", "OTHER", "10.96.0.10/32").Replace(iptablesMode)
	v6 := strings.NewReplacer("ADDRESS", "fd00:10:96::63/128", "OTHER", "fd00:10:96::a/128").Replace(iptablesMode)
	// The two Services that share an address in nftables mode have either's name.
	for _, tc := range []struct {
		name    string
		program []string
		rules   string
		want    map[string]string
	}{
		{"no kube-proxy", nil, "", map[string]string{"kube-system/kube-dns-upstream": ""}},
		{"nftables mode", []string{"nft", "-f", "-"}, nftablesMode, map[string]string{
			"kube-system/kube-dns-upstream": "10.96.0.99:53 [fd00:10:96::63]:53", "kube-system/kube-dns": "10.96.0.10:5353 [fd00:10:96::a]:5353",
			"other/kube-dns-upstream": "10.96.0.10:54 [fd00:10:96::a]:54", "kube-system/kube": "", "system/kube-dns": "",
		}},
		{"iptables mode, IPv4", []string{"iptables-nft-restore", "--noflush"}, v4, map[string]string{
			"kube-system/kube-dns-upstream": "10.96.0.99:53", "kube-system/kube-dns": "10.96.0.10:53", "kube-system/kube": "",
		}},
		{"iptables mode, IPv6", []string{"ip6tables-nft-restore", "--noflush"}, v6, map[string]string{
			"kube-system/kube-dns-upstream": "[fd00:10:96::63]:53", "kube-system/kube-dns": "[fd00:10:96::a]:53", "system/kube-dns": "",
		}},
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
			for _, a := range []string{"10.96.0.98", "fd00:10:96::62"} {
				if got, err := HasEndpoints(cfg, netip.AddrPortFrom(netip.MustParseAddr(a), 53)); err != nil || got {
					t.Errorf("%s: endpoints: %v %v", a, got, err)
				}
			}
			names, err := ServiceNames(cfg)
			if err != nil {
				t.Fatal(err)
			}
			for service, want := range tc.want {
				for ap := range strings.FieldsSeq(want) {
					a := netip.MustParseAddrPort(ap).Addr()
					shared := strings.HasPrefix(service, "other/") || tc.name == "nftables mode" && service == "kube-system/kube-dns"
					if names[a] != service && !shared {
						t.Errorf("%s is of %q, want %s", a, names[a], service)
					}
				}
				found, err := ServiceAddresses(cfg, service)
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, ap := range found {
					got = append(got, ap.String())
				}
				if strings.Join(got, " ") != want {
					t.Errorf("%s: %v, want %s", service, got, want)
				}
				for _, ap := range found {
					for port, want := range map[uint16]bool{ap.Port(): true, 5: len(tc.program) > 0 && tc.program[0] != "nft"} {
						// The ports of rules of iptables mode are not read.
						if got, err := HasEndpoints(cfg, netip.AddrPortFrom(ap.Addr(), port)); err != nil || got != want {
							t.Errorf("%s: endpoints at port %d: %v %v, want %v", ap.Addr(), port, got, err, want)
						}
					}
				}
			}
		})
	}
}
