//go:build privileged

package hostrules

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

// podDevices are lo, a pod behind its own device, a bridge with pods, and a device with
// unknown clients.
var podDevices = []Device{
	{Name: "lo", Index: 1},
	{Name: "veth0", Index: 7, Clients: []netip.Addr{netip.MustParseAddr("10.244.0.11"), netip.MustParseAddr("fd00:244::11")}},
	{Name: "cni0", Index: 8, Clients: []netip.Addr{netip.MustParseAddr("10.244.1.3")}},
	{Name: "tap0", Index: 9},
}

// dropHosts are hosts whose firewall drops packets that no rule accepts.
var dropHosts = []struct {
	name, rules string
	// want has a line for each chain and direction, with the devices whose packets are
	// dropped.
	want []string
}{
	{
		name: "a kubeadm host",
		rules: `*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -p tcp -m multiport --dports 22,6443,10250 -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A INPUT -p udp -m conntrack --ctstate NEW -m udp --dport 53 -j ACCEPT
COMMIT
`,
		want: []string{"INPUT query veth0 cni0 tap0: policy drop"},
	},
	{
		name: "without an accept for lo, output too",
		rules: `*filter
:INPUT DROP [0:0]
:OUTPUT DROP [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED,NEW -j ACCEPT
-A OUTPUT -m conntrack ! --ctstate INVALID,UNTRACKED -j ACCEPT
COMMIT
`,
		want: []string{
			"INPUT query lo veth0 cni0 tap0: policy drop", "OUTPUT query lo: policy drop",
			"INPUT response lo: policy drop", "OUTPUT response lo veth0 cni0 tap0: policy drop",
		},
	},
	{
		name: "ufw",
		rules: `*filter
:INPUT DROP [0:0]
:OUTPUT ACCEPT [0:0]
:ufw-before-input - [0:0]
:ufw-not-local - [0:0]
:ufw-user-input - [0:0]
:ufw-reject-input - [0:0]
-A INPUT -j ufw-before-input
-A INPUT -j ufw-reject-input
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -m limit --limit 3/min -j LOG
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -j ufw-not-local
-A ufw-before-input -d 224.0.0.251/32 -p udp -m udp --dport 5353 -j ACCEPT
-A ufw-before-input -j ufw-user-input
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN
-A ufw-not-local -j DROP
-A ufw-user-input -s 10.244.1.0/24 -p udp -m udp --dport 53 -j ACCEPT
-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
`,
		// The clients behind tap0 are unknown, so they may be accepted.
		want: []string{"INPUT query veth0: policy drop"},
	},
	{
		name: "a drop in a chain after a goto",
		rules: `*filter
:end - [0:0]
:middle - [0:0]
-A INPUT -i veth+ -p udp -j middle
-A middle -d 10.96.0.10/32 -g end
-A end -j REJECT
COMMIT
`,
		want: []string{"INPUT query veth0: end: REJECT"},
	},
	{
		name: "nothing is dropped for certain",
		rules: `*filter
:INPUT ACCEPT [0:0]
-A INPUT -s 198.18.0.0/15 -j DROP
-A INPUT -m mark --mark 0x8000/0x8000 -j DROP
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -i eth0 -j DROP
-A INPUT -m limit --limit 5/s -j ACCEPT
-A INPUT -p udp -m udp --dport 54:60 -j DROP
COMMIT
`,
	},
	{
		name: "a mark that may accept",
		rules: `*filter
:INPUT DROP [0:0]
-A INPUT -m mark --mark 0x10000/0x10000 -j ACCEPT
-A INPUT -i lo -j ACCEPT
COMMIT
`,
	},
}

var dnsOverUDP = []iptables.Endpoint{{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.UDP}}

func droppingLines(t *testing.T, cfg Config, endpoints []iptables.Endpoint, devices []Device) []string {
	t.Helper()
	found, err := DroppingChains(cfg, endpoints, devices)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, o := range found {
		out = append(out, fmt.Sprintf("%s %s %s: %s", o.Chain, o.Direction, strings.Join(o.Devices, " "), o.By))
	}
	return out
}

func TestDroppingChains(t *testing.T) {
	for _, tc := range dropHosts {
		for _, variant := range []string{"nft", "legacy"} {
			t.Run(tc.name+", "+variant, func(t *testing.T) {
				cfg := Config{NetNS: int(testns.Enter(t))}
				testns.Feed(t, tc.rules, "iptables-"+variant+"-restore")
				if diff := cmp.Diff(tc.want, droppingLines(t, cfg, dnsOverUDP, podDevices)); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		}
	}
}

func TestDroppingChainsOfNFT(t *testing.T) {
	for _, tc := range []struct {
		name, rules string
		want        []string
	}{
		{
			name: "firewalld",
			rules: `table inet firewalld {
	chain filter_INPUT { type filter hook input priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ct state invalid drop
		jump filter_INPUT_ZONES
		reject with icmpx admin-prohibited
	}
	chain filter_INPUT_ZONES {
		iifname "cni0" goto trusted
		goto public
	}
	chain trusted { accept; }
	chain public { tcp dport 22 accept; udp dport 53 ct state new accept; }
	chain filter_PREROUTING { type filter hook prerouting priority mangle; policy drop; fib daddr type local accept; }
}`,
			want: []string{"filter_INPUT query veth0 tap0: reject"},
		},
		{
			name: "by number and set",
			rules: `table ip x { set ports { type inet_service; elements = { 53 }; }
 chain c { type filter hook input priority 0; policy drop; iif "lo" accept; udp dport != @ports accept; ct state untracked meta iif 8 accept; }
}`,
			want: []string{"c query veth0 tap0: policy drop"},
		},
		{
			name: "when it leaves",
			rules: `table ip x { chain c { type filter hook postrouting priority 0; oifname "veth*" ct state != { established, new } drop; }
 chain r { type route hook output priority mangle; oifname "cni0" counter drop; }
}`,
			want: []string{
				"r response cni0: oifname \"cni0\" drop", "c response veth0: oifname \"veth*\" ct state != @__set0 drop",
			},
		},
		{
			name: "nat chains, which untracked packets do not pass, and raw chains, which are ours",
			rules: `table ip x { chain c { type nat hook prerouting priority -100; policy drop; }
 chain d { type filter hook prerouting priority -300; policy drop; }
}`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := Config{NetNS: int(testns.Enter(t))}
			testns.Feed(t, tc.rules, "nft", "-f", "-")
			if diff := cmp.Diff(tc.want, droppingLines(t, cfg, dnsOverUDP, podDevices)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// One rule removes each drop in a chain of iptables-nft, and other programs can still
// read the chain.
func TestAccept(t *testing.T) {
	endpoints := []iptables.Endpoint{
		{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.UDP},
		{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.TCP},
	}
	for _, tc := range dropHosts {
		t.Run(tc.name, func(t *testing.T) {
			cfg := Config{NetNS: int(testns.Enter(t))}
			testns.Feed(t, tc.rules, "iptables-nft-restore")
			before := testns.Run(t, "iptables-nft", "-S")
			acceptAll(t, cfg, endpoints)
			listed := testns.Run(t, "iptables-nft", "-S")
			var rest []string
			ours := 0
			for line := range strings.Lines(listed) {
				if strings.Contains(line, AcceptComment) {
					ours++
					if !strings.Contains(line, "--ctstate UNTRACKED") || !strings.Contains(line, "10.96.0.10/32 -p ") || !strings.Contains(line, "port 53 ") {
						t.Errorf("ours is listed as %s", line)
					}
					continue
				}
				rest = append(rest, line)
			}
			if strings.Join(rest, "") != before {
				t.Errorf("the rules of others: %s, before: %s", rest, before)
			}
			found, err := AcceptRules(cfg)
			if err != nil || len(found) != ours || (ours > 0) != (len(tc.want) > 0) {
				t.Errorf("%d rules of ours are listed, %d found, %v", ours, len(found), err)
			}
			testns.Run(t, "nft", "list", "ruleset")
			// iptables-restore reads the output of iptables-save.
			testns.Feed(t, testns.Run(t, "iptables-nft-save"), "iptables-nft-restore")
			if got := droppingLines(t, cfg, endpoints, podDevices); len(got) > 0 {
				t.Errorf("after a restore of what was saved: %v", got)
			}
			if found, err = AcceptRules(cfg); err != nil || len(found) != ours {
				t.Fatalf("%d rules of ours after the restore, %v", len(found), err)
			}
			for _, r := range found {
				if !slices.Contains(endpoints, r.Endpoint) || !strings.Contains(listed, strings.Join(r.Arguments()[:8], " ")) {
					t.Errorf("%s reads as %s %s", r.Text, r.Direction, r.Endpoint)
				}
				if err := RemoveAcceptRule(cfg, r); err != nil {
					t.Fatal(err)
				}
			}
			if after := testns.Run(t, "iptables-nft", "-S"); after != before {
				t.Errorf("after the removal %s, before %s", after, before)
			}
		})
	}
}

// acceptAll accepts all dropped packets and asserts that none is dropped after that.
func acceptAll(t *testing.T, cfg Config, endpoints []iptables.Endpoint) {
	t.Helper()
	found, err := DroppingChains(cfg, endpoints, podDevices)
	if err != nil {
		t.Fatal(err)
	}
	if err := Accept(cfg, found); err != nil {
		t.Fatal(err)
	}
	if left := droppingLines(t, cfg, endpoints, podDevices); len(left) > 0 {
		t.Fatalf("still dropped: %v", left)
	}
}

// Accept moves our rule before a rule that another program has inserted, and our rule is
// not there twice.
func TestAcceptAgain(t *testing.T) {
	cfg := Config{NetNS: int(testns.Enter(t))}
	endpoints := []iptables.Endpoint{{Addr: netip.MustParseAddr("fd00:10:96::a"), Port: 53, Proto: iptables.TCP}}
	testns.Feed(t, "*filter\n:INPUT DROP [0:0]\nCOMMIT\n", "ip6tables-nft-restore")
	acceptAll(t, cfg, endpoints)
	testns.Run(t, "ip6tables-nft", "-I", "INPUT", "-j", "DROP")
	acceptAll(t, cfg, endpoints)
	found, err := AcceptRules(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var chains []string
	for _, r := range found {
		chains = append(chains, r.Family+" "+r.Chain)
	}
	if got := strings.Join(chains, ", "); got != "ip6 INPUT, ip6 INPUT" { // query, and response over lo
		t.Errorf("%s", got)
	}
}
