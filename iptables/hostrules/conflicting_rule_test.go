//go:build privileged

package hostrules

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/nftables"
)

func endpointAt(addr string, port uint16, proto iptables.Proto) iptables.Endpoint {
	return iptables.Endpoint{Addr: netip.MustParseAddr(addr), Port: port, Proto: proto}
}

func TestForeignRules(t *testing.T) {
	v4 := []iptables.Endpoint{endpointAt("10.96.0.10", 53, iptables.TCP), endpointAt("10.96.0.10", 53, iptables.UDP)}
	v6 := []iptables.Endpoint{endpointAt("fd00:10:96::a", 53, iptables.TCP), endpointAt("fd00:10:96::a", 53, iptables.UDP)}
	all := append(append([]iptables.Endpoint{}, v4...), v6...)
	type found struct {
		Where   string // family table chain hook priority
		Effects string
		On      []iptables.Endpoint
		Certain bool
		Text    string
	}
	for _, tc := range []struct {
		name  string
		nft   string
		rules [][]string // programs to run as well

		before, after []string // commands for sh, around the table
		want          []found
	}{
		{name: "nothing", nft: ""},
		{
			name: "notrack of an address, port and protocol",
			nft:  `table ip x { chain c { type filter hook prerouting priority raw; ip daddr 10.96.0.10 udp dport 53 notrack; } }`,
			want: []found{{"ip x c prerouting -300", "notrack", v4[1:], true, "ip daddr 10.96.0.10 meta l4proto udp th dport 53 notrack"}},
		},
		{
			name: "other addresses, ports, protocols and hooks",
			nft: `table inet x {
				chain c { type filter hook prerouting priority raw;
					ip daddr 10.96.0.11 udp dport 53 drop; ip daddr 10.96.0.10 udp dport 54 drop
					meta l4proto icmp drop; ip daddr { 10.96.0.1, 10.96.0.2 } drop; ip saddr != 10.0.0.0/8 ip daddr 10.96.0.11 drop; }
				chain f { type filter hook forward priority raw; drop; }
				chain late { type filter hook prerouting priority mangle; udp dport 53 drop; } }`,
		},
		{
			name: "prefixes and sets that may have the client",
			nft: `table inet x { chain c { type filter hook prerouting priority raw;
					ip daddr 10.96.0.0/29 drop; ip6 saddr fd00::/64 drop; udp dport { 1053, 1060-1070 } drop; } }`,
			want: []found{
				{"inet x c prerouting -300", "drop", v4, false, "meta nfproto ipv4 ip daddr 10.96.0.0/29 drop"},
				{"inet x c prerouting -300", "drop", v6, false, "meta nfproto ipv6 ip6 saddr fd00::/64 drop"},
				{"inet x c prerouting -300", "drop", []iptables.Endpoint{v4[1], v6[1]}, false, "meta l4proto udp th dport @__set0 drop"},
			},
		},
		{
			name: "prefix, set, range and interval with the address",
			nft: `table inet x { set s { type ipv4_addr; elements = { 10.96.0.1, 10.96.0.10 } }
				set i { type ipv4_addr; flags interval; elements = { 10.96.0.0/24, 10.97.0.0/24 } }
				set k { type ipv4_addr . inet_service; elements = { 10.96.0.10 . 53 } }
				set r { type ipv4_addr . inet_service; flags interval; elements = { 10.96.0.0/16 . 50-60 } }
				chain c { type filter hook output priority -400;
					ip daddr 10.96.0.0/12 udp sport 1-1023 udp dport 53 counter drop
					ip daddr @s udp dport 50-60 accept; }
				chain d { type filter hook output priority -399; ip daddr @i meta l4proto udp drop; }
				chain e { type filter hook output priority -398; ip daddr . udp dport @k drop; }
				chain f { type filter hook output priority -397; ip daddr . udp dport @r drop; } }`,
			want: []found{
				{"inet x c output -400", "drop", v4[1:], false, "meta nfproto ipv4 ip daddr 10.96.0.0/12 meta l4proto udp th sport >= 1 th sport <= 1023 th dport 53 drop"},
				{"inet x c output -400", "accept", v4[1:], true, "meta nfproto ipv4 ip daddr @s meta l4proto udp th dport >= 50 th dport <= 60 accept"},
				{"inet x d output -399", "drop", v4[1:], true, "meta nfproto ipv4 ip daddr @i meta l4proto udp drop"},
				{"inet x e output -398", "drop", v4[1:], true, "meta nfproto ipv4 meta l4proto udp ip daddr @k drop"},
				{"inet x f output -397", "drop", v4[1:], true, "meta nfproto ipv4 meta l4proto udp ip daddr @r drop"},
			},
		},
		{
			name: "both families and both directions, with conditions that are unknown",
			nft:  `table inet x { chain c { type filter hook prerouting priority raw; iifname "eth*" th dport 53 drop; ip6 saddr fd00:10:96::a udp sport 53 notrack; limit rate 5/second drop; } }`,
			want: []found{
				{"inet x c prerouting -300", "drop", all, false, `iifname "eth*" th dport 53 drop`},
				{"inet x c prerouting -300", "notrack", v6[1:], true, "meta nfproto ipv6 ip6 saddr fd00:10:96::a meta l4proto udp th sport 53 notrack"},
				{"inet x c prerouting -300", "drop", all, false, "[limit] drop"},
			},
		},
		{
			name: "conditions of which only a fast path is wary",
			nft: `table ip x { counter n { }
				limit l { rate 10/second; }
				set seen { type ipv4_addr; flags dynamic; }
				set d { type inet_service; flags timeout; elements = { 53 }; }
				map m { type ipv4_addr : verdict; elements = { 10.96.0.11 : drop }; }
				chain c { type filter hook prerouting priority raw; udp sport 5300 drop; ip saddr vmap @m; }
				chain d { type filter hook prerouting priority -299; counter name n limit name l add @seen { ip saddr } ip daddr 10.96.0.10 udp dport @d drop; } }`,
			want: []found{
				{"ip x d prerouting -299", "drop", v4[1:], true, "[objref] [objref] [dynset] ip daddr 10.96.0.10 meta l4proto udp th dport @d drop"},
			},
		},
		{
			name: "after jumps, a return and a verdict map",
			nft: `table ip x {
				chain deep { udp dport 53 drop; }
				chain out { tcp dport 53 return; goto deep; }
				chain c { type filter hook prerouting priority raw;
					ip daddr vmap { 10.96.0.10 : jump out, 10.96.0.11 : drop }; ip daddr 10.96.0.10 accept; drop; } }`,
			want: []found{
				{"ip x c prerouting -300", "accept", v4[:1], true, "ip daddr 10.96.0.10 accept"},
				{"ip x c prerouting -300", "drop", v4, true, "drop"},
				{"ip x deep prerouting -300", "drop", v4[1:], true, "meta l4proto udp th dport 53 drop"},
			},
		},
		{
			name: "a policy",
			nft:  `table ip x { chain c { type filter hook output priority -350; policy drop; ip daddr 10.96.0.10 udp dport 53 accept; } }`,
			want: []found{
				{"ip x c output -350", "drop", v4, true, "policy drop"},
				{"ip x c output -350", "accept", v4[1:], true, "ip daddr 10.96.0.10 meta l4proto udp th dport 53 accept"},
			},
		},
		{
			name: "zones",
			nft:  `table inet x { chain c { type filter hook prerouting priority raw; udp dport 53 ct zone set 7; tcp dport 53 ct original zone set 7; } }`,
			rules: [][]string{
				{"iptables-nft", "-t", "raw", "-A", "PREROUTING", "-p", "udp", "--dport", "53", "-j", "CT", "--zone-orig", "7"},
				{"iptables-nft", "-t", "raw", "-A", "OUTPUT", "-p", "udp", "--dport", "53", "-j", "CT", "--zone", "mark"},
				{"iptables-nft", "-t", "raw", "-A", "OUTPUT", "-p", "tcp", "--dport", "53", "-j", "CT", "--helper", "ftp"},
			},
			want: []found{
				{"ip raw OUTPUT output -300", "ct zone set", v4[1:], true, "meta l4proto udp th dport 53 CT --zone mark"},
				{"ip raw OUTPUT output -300", "ct set", v4[:1], true, "meta l4proto tcp th dport 53 CT"},
				{"inet x c prerouting -300", "ct zone set", []iptables.Endpoint{v4[1], v6[1]}, true, "meta l4proto udp th dport 53 ct zone set"},
				{"inet x c prerouting -300", "ct zone set", []iptables.Endpoint{v4[0], v6[0]}, true, "meta l4proto tcp th dport 53 ct zone set"},
				{"ip raw PREROUTING prerouting -300", "ct zone set", v4[1:], true, "meta l4proto udp th dport 53 CT --zone-orig 7"},
			},
		},
		{
			name: "a dormant table, and one that is not",
			nft: `table inet x { flags dormant; chain c { type filter hook prerouting priority raw; policy drop; udp dport 53 notrack; } }
				table ip y { chain c { type filter hook prerouting priority raw; tcp dport 53 drop; } }`,
			want: []found{{"ip y c prerouting -300", "drop", v4[:1], true, "meta l4proto tcp th dport 53 drop"}},
		},
		{
			name: "at devices, of which some are gone, and of bridges",
			nft: `table netdev x { chain here { type filter hook ingress device "d0" priority 0; ip daddr 10.96.0.10 udp dport 53 drop; }
				chain gone { type filter hook ingress device "d1" priority 0; udp dport 53 drop; } }
				table inet y { chain here { type filter hook ingress device "d0" priority 0; ip daddr 10.96.0.10 tcp dport 53 drop; } }
				table bridge z { chain c { type filter hook prerouting priority 0; ip daddr 10.96.0.10 udp dport 53 drop; }
					chain f { type filter hook forward priority 0; drop; } }`,
			before: []string{"ip link add d0 type dummy || ip link add d0 type ifb", "ip link add d1 type dummy || ip link add d1 type ifb"},
			after:  []string{"ip link del d1"},
			want: []found{
				{"inet y here ingress 0", "drop", v4[:1], false, "meta nfproto ipv4 ip daddr 10.96.0.10 meta l4proto tcp th dport 53 drop"},
				{"netdev x here ingress 0", "drop", v4[1:], false, "meta protocol 0x0800 ip daddr 10.96.0.10 meta l4proto udp th dport 53 drop"},
				{"bridge z c prerouting 0", "drop", v4[1:], false, "meta protocol 0x0800 ip daddr 10.96.0.10 meta l4proto udp th dport 53 drop"},
			},
		},
		{
			name: "iptables-nft",
			rules: [][]string{
				{"iptables-nft", "-t", "raw", "-A", "PREROUTING", "-d", "10.96.0.10/32", "-p", "udp", "--dport", "53", "-j", "NOTRACK"},
				{"iptables-nft", "-t", "raw", "-A", "OUTPUT", "-s", "10.96.0.10/32", "-p", "tcp", "--sport", "53", "-m", "comment", "--comment", "mine", "-j", "CT", "--notrack"},
				{"iptables-nft", "-t", "raw", "-A", "OUTPUT", "-d", "10.96.0.11/32", "-j", "NOTRACK"},
				{"ip6tables-nft", "-t", "raw", "-A", "PREROUTING", "-m", "mark", "--mark", "7", "-j", "DROP"},
			},
			want: []found{
				{"ip raw OUTPUT output -300", "notrack", v4[:1], true, `meta l4proto tcp ip saddr 10.96.0.10 th sport 53 CT --notrack comment "mine"`},
				{"ip raw PREROUTING prerouting -300", "notrack", v4[1:], true, `meta l4proto udp ip daddr 10.96.0.10 th dport 53 CT --notrack`},
				{"ip6 raw PREROUTING prerouting -300", "drop", v6, false, "meta mark 7 drop"},
			},
		},
		{
			name: "iptables-legacy",
			rules: [][]string{
				{"iptables-legacy", "-t", "raw", "-A", "PREROUTING", "!", "-i", "eth0", "-p", "udp", "--dport", "53", "-j", "ACCEPT"},
				{"iptables-legacy", "-t", "raw", "-A", "OUTPUT", "-s", "10.96.0.10/32", "-p", "tcp", "--sport", "53", "-j", "CT", "--notrack"},
			},
			want: []found{
				{"ip raw OUTPUT output -300", "notrack", v4[:1], true, `ip saddr 10.96.0.10 meta l4proto tcp th sport 53 CT --notrack`},
				{"ip raw PREROUTING prerouting -300", "accept", v4[1:], false, `iifname != "eth0" meta l4proto udp th dport 53 accept`},
			},
		},
		{
			name: "rules that node-cache left, also for addresses that are not ours",
			rules: [][]string{
				{"iptables-nft", "-t", "raw", "-A", "OUTPUT", "-d", "169.254.20.10/32", "-p", "tcp", "--dport", "8080", "-m", "comment", "--comment", "NodeLocal DNS Cache: skip conntrack", "-j", "NOTRACK"},
				{"iptables-nft", "-t", "filter", "-A", "INPUT", "-d", "169.254.20.10/32", "-p", "udp", "--dport", "53", "-m", "comment", "--comment", "NodeLocal DNS Cache: allow DNS traffic", "-j", "ACCEPT"},
			},
			want: []found{
				{"ip filter INPUT input 0", "accept node-cache", nil, true, `meta l4proto udp ip daddr 169.254.20.10 th dport 53 accept comment "NodeLocal DNS Cache: allow DNS traffic"`},
				{"ip raw OUTPUT output -300", "notrack node-cache", nil, true, `meta l4proto tcp ip daddr 169.254.20.10 th dport 8080 CT --notrack comment "NodeLocal DNS Cache: skip conntrack"`},
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			testns.Program(t, "nft")
			cfg := Config{NetNS: int(testns.Enter(t))}
			b, err := nftables.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := b.Remove(); err != nil {
					t.Error(err)
				}
			})
			// The rules of our own table are left out.
			if err := errors.Join(b.Install(iptables.Rules{Plan: iptables.Plan{Listen: all}.Normalize()}), b.Attach()); err != nil {
				t.Fatal(err)
			}
			for _, command := range tc.before {
				testns.Run(t, "sh", "-c", command)
			}
			if tc.nft != "" {
				cmd := exec.Command("nft", "-f", "-")
				cmd.Stdin = strings.NewReader(strings.ReplaceAll(tc.nft, "; } }", "; }\n}"))
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("nft: %v\n%s", err, out)
				}
			}
			for _, r := range tc.rules {
				testns.Run(t, r[0], r[1:]...)
			}
			for _, command := range tc.after {
				testns.Run(t, "sh", "-c", command)
			}
			rules, err := ConflictingRules(cfg, all)
			if err != nil {
				t.Fatal(err)
			}
			var got []found
			for _, r := range rules {
				effects := strings.Join(r.Effects, " ")
				if r.NodeCache {
					effects += " node-cache"
				}
				got = append(got, found{
					fmt.Sprintf("%s %s %s %s %d", r.Family, r.Table, r.Chain, r.Hook, r.Priority),
					effects, r.Concerns, r.Certain, r.Text,
				})
			}
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
