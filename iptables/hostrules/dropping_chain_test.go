package hostrules

import (
	"net/netip"
	"testing"

	"github.com/trackless-dns/trackless/iptables"
)

func TestRemedyForADroppingChain(t *testing.T) {
	e := iptables.Endpoint{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.UDP}
	e6 := iptables.Endpoint{Addr: netip.MustParseAddr("fd00:10:96::a"), Port: 53, Proto: iptables.TCP}
	for _, tc := range []struct {
		chain     DroppingChain
		want      string
		amendable bool
	}{
		{
			DroppingChain{Family: "inet", Table: "firewalld", Chain: "filter_INPUT", Endpoint: e, Devices: []string{"cni0", "veth1"}},
			"firewall-cmd --permanent --zone=trusted --add-interface=cni0 --add-interface=veth1 && firewall-cmd --reload", false,
		},
		{
			DroppingChain{Family: "inet", Table: "filter", Chain: "input", Endpoint: e6, Direction: iptables.Response},
			"nft insert rule inet filter input ip6 saddr fd00:10:96::a tcp sport 53 ct state untracked accept", false,
		},
		{
			DroppingChain{Family: "ip", Table: "filter", Chain: "INPUT", Legacy: true, Endpoint: e},
			`iptables-legacy -t filter -I INPUT -d 10.96.0.10/32 -p udp -m udp --dport 53 -m conntrack --ctstate UNTRACKED -m comment --comment "trackless 1: untracked DNS" -j ACCEPT`, true,
		},
		{
			DroppingChain{Family: "ip", Table: "mangle", Chain: "INPUT", Endpoint: e},
			`iptables-nft -t mangle -I INPUT -d 10.96.0.10/32 -p udp -m udp --dport 53 -m conntrack --ctstate UNTRACKED -m comment --comment "trackless 1: untracked DNS" -j ACCEPT`, false,
		},
	} {
		if got := tc.chain.Remedy(); got != tc.want {
			t.Errorf("%s\nwant %s", got, tc.want)
		}
		if got := tc.chain.Amendable(); got != tc.amendable {
			t.Errorf("%s: %v", tc.chain, got)
		}
	}
}
