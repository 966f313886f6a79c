//go:build privileged

package hostrules

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

// TestFilters plays rules of other programs. A pod is behind veth0 alone, another behind
// the port veth1 of cni0.
func TestFilters(t *testing.T) {
	pod := Device{Name: "veth0", Index: 7, Clients: []netip.Addr{netip.MustParseAddr("10.244.0.11")}}
	bridge := Device{Name: "cni0", Index: 8} // which pod is behind which port is not known
	for _, row := range []struct {
		name, iptables, nft string
		pod, port           string // the chain that may drop; empty: none
	}{
		{name: "no rules"},
		{name: "other pods", iptables: "*filter\n-A INPUT -s 10.244.0.12/32 -j DROP\nCOMMIT\n", port: "INPUT"},
		{name: "this pod", iptables: "*filter\n-A INPUT -s 10.244.0.11/32 -p udp -j DROP\nCOMMIT\n", pod: "INPUT", port: "INPUT"},
		{name: "another device", iptables: "*filter\n-A INPUT -i eth0 -j DROP\nCOMMIT\n"},
		{name: "another port", iptables: "*filter\n-A INPUT -p udp --dport 5353 -j DROP\nCOMMIT\n"},
		{name: "a port of the client", nft: "table inet t { chain c { type filter hook input priority 0; udp sport 53 drop; }; }", pod: "c", port: "c"},
		{name: "ports of the client in a set", nft: "table inet t { chain c { type filter hook output priority 0; udp dport { 53, 5353 } drop; }; }", pod: "c", port: "c"},
		{name: "a verdict map by client", nft: "table ip t { chain c { type filter hook input priority 0; ip saddr vmap { 10.244.0.12 : drop }; }; }", port: "c"},
		{name: "a verdict map with networks of clients", nft: "table ip t { chain c { type filter hook input priority 0; ip saddr vmap { 10.243.0.0/16 : accept, 10.244.0.12-10.244.0.20 : drop }; }; }", port: "c"},
		{name: "a verdict map with a jump", nft: "table ip t { chain d { drop; }; chain c { type filter hook input priority 0; ip saddr vmap { 10.244.0.12 : jump d }; }; }", port: "c"},
		{name: "a verdict map by client and port", nft: "table ip t { chain c { type filter hook input priority 0; ip saddr . udp sport vmap { 10.244.0.11 . 53 : drop }; }; }", pod: "c", port: "c"},
		{name: "a verdict map by mark", nft: "table inet t { chain c { type filter hook prerouting priority -150; meta mark vmap { 1 : drop }; }; }", pod: "c", port: "c"},
		{name: "a verdict map for responses", nft: "table ip t { chain c { type filter hook output priority 0; ip daddr vmap { 10.244.0.12 : drop }; }; }", port: "c"},
		{name: "a verdict map for others", nft: "table inet t { chain c { type filter hook input priority 0; ct state vmap { invalid : drop, established : accept }; udp dport vmap { 5353 : drop }; iifname vmap { eth0 : drop, lo : accept }; }; }"},
		{name: "a named limit", nft: "table ip t { limit l { rate 10/second; }; chain c { type filter hook input priority 0; limit name l accept; udp dport 53 drop; }; }", pod: "c", port: "c"},
		{name: "a named quota", nft: "table ip t { quota q { 1 mbytes; }; chain c { type filter hook input priority 0; quota name q accept; udp dport 53 drop; }; }", pod: "c", port: "c"},
		{name: "a named counter", nft: "table ip t { counter n { }; chain c { type filter hook input priority 0; counter name n accept; udp dport 53 drop; }; }"},
		{name: "a counter by client", nft: "table ip t { counter n { }; chain c { type filter hook input priority 0; counter name ip saddr map { 10.244.0.12 : \"n\" } accept; udp dport 53 drop; }; }", pod: "c", port: "c"},
		{name: "a limit for each client", nft: "table ip t { set m { type ipv4_addr; flags dynamic; size 100; }; chain c { type filter hook input priority 0; update @m { ip saddr limit rate 10/second } accept; udp dport 53 drop; }; }", pod: "c", port: "c"},
		{name: "a set that packets fill", nft: "table ip t { set b { type ipv4_addr; flags dynamic; size 100; }; chain c { type filter hook input priority 0; ip saddr @b drop; }; }", pod: "c", port: "c"},
		{name: "a set that times out", nft: "table ip t { set a { type ipv4_addr; flags timeout; elements = { 10.244.0.11 timeout 1h }; }; chain c { type filter hook input priority 0; ip saddr @a accept; udp dport 53 drop; }; }", pod: "c", port: "c"},
		{name: "a verdict map that packets fill", nft: "table ip t { map v { type ipv4_addr : verdict; flags dynamic; size 100; }; chain c { type filter hook input priority 0; ip saddr vmap @v; }; }", pod: "c", port: "c"},
		{name: "a set of other clients", nft: "table ip t { set b { type ipv4_addr; elements = { 10.244.0.12 }; }; chain c { type filter hook input priority 0; ip saddr @b drop; }; }", port: "c"},
		{name: "a verdict map with a verdict for all others", nft: "table ip t { chain c { type filter hook input priority 0; ip saddr vmap { 10.244.0.12 : accept, * : drop }; }; }", pod: "c", port: "c"},
		{name: "networks with a verdict for all others", nft: "table ip t { chain c { type filter hook input priority 0; ip saddr vmap { 10.243.0.0/16 : accept, * : drop }; }; }", pod: "c", port: "c"},
		{name: "the kubelet's chain", iptables: `*filter
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
COMMIT
`},
		{name: "a network of pods", iptables: "*filter\n-A OUTPUT -d 10.244.0.0/24 -p udp --sport 53 -j DROP\nCOMMIT\n", pod: "OUTPUT", port: "OUTPUT"},
		{name: "tracked flows", iptables: "*filter\n-A INPUT -m conntrack --ctstate NEW,INVALID -j DROP\nCOMMIT\n"},
		{name: "accepted before", iptables: "*filter\n:INPUT DROP [0:0]\n-A INPUT -p udp --dport 53 -j ACCEPT\nCOMMIT\n"},
		{name: "a policy of drop", iptables: "*filter\n:INPUT DROP [0:0]\nCOMMIT\n", pod: "INPUT", port: "INPUT"},
		{name: "responses", iptables: "*filter\n-A OUTPUT -d 10.244.0.11/32 -p udp --sport 53 -j DROP\nCOMMIT\n", pod: "OUTPUT", port: "OUTPUT"},
		{name: "Calico's shape", iptables: `*filter
:cali-INPUT - [0:0]
:cali-wl-to-host - [0:0]
:cali-from-wl-dispatch - [0:0]
:cali-fw-veth0 - [0:0]
-A INPUT -j cali-INPUT
-A cali-INPUT -i veth+ -g cali-wl-to-host
-A cali-wl-to-host -j cali-from-wl-dispatch
-A cali-from-wl-dispatch -i veth0 -g cali-fw-veth0
-A cali-fw-veth0 -j MARK --set-xmark 0x0/0x10000
-A cali-fw-veth0 -m mark --mark 0x10000/0x10000 -j RETURN
-A cali-fw-veth0 -j DROP
COMMIT
`, pod: "INPUT"},
		{name: "kube-router's shape", iptables: `*filter
:KUBE-ROUTER-INPUT - [0:0]
:KUBE-POD-FW-A - [0:0]
-A INPUT -j KUBE-ROUTER-INPUT
-A KUBE-ROUTER-INPUT -s 10.244.0.11/32 -j KUBE-POD-FW-A
-A KUBE-POD-FW-A -m mark ! --mark 0x10000/0x10000 -j REJECT
COMMIT
`, pod: "INPUT", port: "INPUT"},
		{name: "before ours", nft: "table ip t { chain early { type filter hook prerouting priority -400; iifname veth0 udp dport 53 drop; }; }", pod: "early"},
		{name: "Calico's nftables shape", nft: "table ip calico { chain filter-INPUT { type filter hook input priority 0; iifname veth0 meta mark & 0x10000 == 0 drop; }; }", pod: "filter-INPUT"},
		{name: "firewalld's shape", nft: "table inet firewalld { chain filter_INPUT { type filter hook input priority 10; ct state { established, related } accept; iifname lo accept; jump zones; reject; }; chain zones { iifname veth0 goto trusted; iifname cni0 goto trusted; }; chain trusted { accept; }; }"},
		{name: "firewalld without the devices", nft: "table inet firewalld { chain filter_INPUT { type filter hook input priority 10; ct state { established, related } accept; iifname lo accept; reject; }; }", pod: "filter_INPUT", port: "filter_INPUT"},
		{name: "another receiver", nft: "table inet p { chain pre { type filter hook prerouting priority -150; udp dport 53 tproxy to :5300 accept; }; }", pod: "pre", port: "pre"},
		{name: "a port by name", iptables: "*filter\n-A INPUT -m physdev --physdev-in veth1 -j DROP\nCOMMIT\n", pod: "INPUT", port: "INPUT"},
		{name: "forwarded packets", nft: "table inet f { chain f1 { type filter hook forward priority 0; policy drop; }; }; table bridge b { chain f2 { type filter hook forward priority 0; policy drop; }; }"},
		{name: "a bridge's chain without rules", nft: "table bridge t { chain b { type filter hook prerouting priority 0; }; }"},
		{name: "a bridge's chain", nft: "table bridge t { chain b { type filter hook prerouting priority 0; ether type ip drop; }; }", port: "b"},
		{name: "a chain at the device", nft: "table netdev t { chain d { type filter hook ingress device veth0 priority 0; udp dport 53 drop; }; }", pod: "d"},
		{name: "a chain at the port", nft: "table netdev t { chain d { type filter hook ingress device veth1 priority 0; udp dport 53 drop; }; }", port: "d"},
		{name: "our own", nft: "table inet trackless-00000000 { chain q { type filter hook input priority 0; udp dport 53 drop; }; }"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			ns := testns.New(t)
			ns.Do(func() {
				testns.Run(t, "ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
				if row.iptables != "" {
					testns.Feed(t, row.iptables, "iptables-nft-restore")
				}
				if row.nft != "" {
					testns.Feed(t, row.nft, "nft", "-f", "-")
				}
			})
			endpoints := []iptables.Endpoint{{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.UDP}}
			f, err := ReadFilters(Config{NetNS: ns.FD()}, endpoints)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for _, place := range []struct {
				device     Device
				port, want string
			}{{pod, "", row.pod}, {bridge, "veth1", row.port}} {
				why, err := f.Before(place.device, place.port)
				if err != nil {
					t.Fatal(err)
				}
				if place.want == "" && why != "" || place.want != "" && !strings.HasPrefix(why, "chain "+place.want+" of table ") {
					t.Errorf("behind %s: %q, want chain %q", place.device.Name, why, place.want)
				}
			}
		})
	}
}
