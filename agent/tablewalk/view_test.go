package tablewalk

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/jsimonetti/rtnetlink/v2"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/failover"
	"github.com/trackless-dns/trackless/iptables/route"
)

func TestDNSRoles(t *testing.T) {
	const node, pod, kubeDNS, elsewhere = "192.0.2.10", "10.244.0.11", "10.244.0.53", "10.244.7.7"
	udp := func(role Role) Entries { return Entries{{role, iptables.UDP, iptables.IPv4}: 1} }
	view := &View{
		listen: map[iptables.Endpoint]bool{
			{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.UDP}:          true,
			{Addr: netip.MustParseAddr("fd00:10:96::a"), Port: 53, Proto: iptables.TCP}:       true,
			{Addr: netip.MustParseAddr("169.254.20.10"), Port: 53, Proto: iptables.UDP}:       true,
			{Addr: netip.MustParseAddr("10.96.0.10"), Port: 853, Proto: iptables.Proto(6)}:    true,
			{Addr: netip.MustParseAddr("fd00:10:96::a"), Port: 853, Proto: iptables.Proto(6)}: true,
		},
		upstreams: map[netip.AddrPort]bool{
			netip.MustParseAddrPort("10.96.0.99:53"): true,
			netip.MustParseAddrPort("1.1.1.1:853"):   true,
		},
		pairs: []failover.Pair{{
			Listen: netip.MustParseAddr("169.254.20.10"), Service: netip.MustParseAddr("10.96.0.53"), Ports: []uint16{53},
		}},
	}
	here := origins{
		own:   map[netip.Addr]bool{netip.MustParseAddr(node): true},
		known: map[netip.Addr]bool{},
		routes: []destination{
			{netip.MustParsePrefix("10.244.0.0/24"), true},
			{netip.MustParsePrefix("fd00:244::/64"), true},
			{netip.MustParsePrefix("10.244.0.0/16"), false},
			{netip.MustParsePrefix("0.0.0.0/0"), false},
		},
	}
	type flow struct {
		proto    conntrack.Protocol
		src, dst string
		zone     uint16
		server   string // who answered, if anybody
	}
	for _, tt := range []struct {
		name  string
		flows []flow
		want  Entries
	}{
		{"a pod asks a listen address", []flow{{proto: 17, src: pod, dst: "10.96.0.10:53"}}, udp(Client)},
		{"so does the node", []flow{{proto: 17, src: node, dst: "10.96.0.10:53"}}, udp(Client)},
		{"and another node", []flow{{proto: 17, src: elsewhere, dst: "10.96.0.10:53"}}, udp(Client)},
		{"TCP over IPv6", []flow{{proto: 6, src: "fd00:244::b", dst: "[fd00:10:96::a]:53"}}, Entries{{Client, iptables.TCP, iptables.IPv6}: 1}},
		{"TLS to a listen address", []flow{{proto: 6, src: pod, dst: "10.96.0.10:853"}}, Entries{{Client, iptables.TCP, iptables.IPv4}: 1}},
		{"over the failover table", []flow{{proto: 17, src: pod, dst: "10.96.0.53:53", zone: failover.Zone}}, udp(Client)},
		{"we ask the upstream", []flow{{proto: 17, src: node, dst: "10.96.0.99:53"}}, udp(Upstream)},
		{"over TLS", []flow{{proto: 6, src: node, dst: "1.1.1.1:853"}}, Entries{{Upstream, iptables.TCP, iptables.IPv4}: 1}},
		{"a pod asks the upstream itself", []flow{{proto: 17, src: pod, dst: "10.96.0.99:53"}}, udp(Bypass)},
		{"a pod asks a resolver outside", []flow{{proto: 17, src: pod, dst: "8.8.8.8:53"}}, udp(Bypass)},
		{"so does the node", []flow{{proto: 17, src: node, dst: "8.8.8.8:53"}}, udp(Bypass)},
		{"somebody elsewhere asks kube-dns on this node", []flow{{proto: 17, src: elsewhere, dst: kubeDNS + ":53", server: kubeDNS}}, Entries{}},
		{"kube-dns asks its own upstream", []flow{
			{proto: 17, src: kubeDNS, dst: "8.8.8.8:53", server: "8.8.8.8"},
			{proto: 17, src: elsewhere, dst: kubeDNS + ":53", server: kubeDNS},
		}, Entries{}},
		{"a pod that nobody asks is no DNS server", []flow{
			{proto: 17, src: pod, dst: "8.8.8.8:53", server: "8.8.8.8"},
			{proto: 17, src: elsewhere, dst: pod + ":53"},
		}, udp(Bypass)},
		{"another service of the upstream's port", []flow{{proto: 6, src: pod, dst: "1.1.1.1:853"}}, Entries{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			clear(here.known)
			c := tableCount{
				view: view, origins: here, entries: Entries{},
				bypass: map[netip.Addr]Entries{}, servers: map[netip.Addr]bool{}, fresh: map[netip.Addr]uint64{},
			}
			for _, f := range tt.flows {
				dst := netip.MustParseAddrPort(f.dst)
				e := &conntrack.Entry{Original: conntrack.Tuple{
					Src: netip.MustParseAddr(f.src), SrcPort: 40000, Dst: dst.Addr(), DstPort: dst.Port(), Proto: f.proto, Zone: f.zone,
				}}
				e.Reply = e.Original.Mirror()
				if f.server != "" {
					e.Reply.Src, e.Status = netip.MustParseAddr(f.server), conntrack.StatusSeenReply
				}
				c.add(e)
			}
			if got := c.total(); !maps.Equal(got, tt.want) {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}

// A pod of this node is directly behind a device of a kind that pods have. What
// comes from elsewhere, however its route is written, is no bypass of this node.
func TestDestinations(t *testing.T) {
	const veth, uplink, wireguard = 7, 8, 9
	links := []rtnetlink.LinkMessage{
		{Index: veth, Attributes: &rtnetlink.LinkAttributes{Name: "pod0", Info: &rtnetlink.LinkInfo{Kind: "veth"}}},
		{Index: uplink, Attributes: &rtnetlink.LinkAttributes{Name: "eth0", Info: &rtnetlink.LinkInfo{Kind: "veth"}}},
		{Index: wireguard, Attributes: &rtnetlink.LinkAttributes{Name: "wg0", Info: &rtnetlink.LinkInfo{Kind: "wireguard"}}},
		{Index: 1, Attributes: &rtnetlink.LinkAttributes{Name: "lo"}},
	}
	devices := podDevices(links, []string{"eth0"})
	to := netip.MustParsePrefix("10.244.3.0/24")
	for _, tc := range []struct {
		name  string
		route route.Route
		want  []destination
	}{
		{"behind a veth", route.Route{To: to, Table: route.Main, Hops: []route.Hop{{Device: veth}}}, []destination{{to, true}}},
		{"by a gateway behind it", route.Route{To: to, Table: route.Main, Hops: []route.Hop{{Device: veth, Away: true}}}, []destination{{to, false}}},
		{"behind the uplink", route.Route{To: to, Table: route.Main, Hops: []route.Hop{{Device: uplink}}}, []destination{{to, false}}},
		{"behind a tunnel", route.Route{To: to, Table: route.Main, Hops: []route.Hop{{Device: wireguard}}}, []destination{{to, false}}},
		{"behind either of two", route.Route{To: to, Table: route.Main, Hops: []route.Hop{{Device: veth}, {Device: uplink}}}, []destination{{to, false}}},
		{"by a nexthop object that is gone", route.Route{To: to, Table: route.Main}, []destination{{to, false}}},
		{"of another table", route.Route{To: to, Table: 100, Hops: []route.Hop{{Device: veth}}}, nil},
	} {
		if got := destinations([]route.Route{tc.route}, devices); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}
