//go:build privileged

package failover

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/kubeproxy"
)

// A proxy is a way to write a kube-proxy's rules on a node.
type proxy struct {
	name  string
	apply func(n node, services ...kubeproxy.Service)
	clear func(n node)
}

var (
	nftablesProxy = proxy{
		name: "nftables",
		apply: func(n node, services ...kubeproxy.Service) {
			n.t.Helper()
			if err := n.KubeProxy.Apply(services...); err != nil {
				n.t.Fatal(err)
			}
		},
		clear: func(n node) {
			n.t.Helper()
			if err := n.KubeProxy.Remove(); err != nil {
				n.t.Fatal(err)
			}
		},
	}
	legacyProxy      = iptablesProxy("legacy", true)
	iptablesNFTProxy = iptablesProxy("nft", true)

	// As kube-proxy writes it when it knows no cluster CIDR: what the node
	// itself sends to a ClusterIP keeps its source address.
	unmasqueradingProxy = iptablesProxy("nft", false)

	proxies = []proxy{nftablesProxy, legacyProxy, iptablesNFTProxy}
)

// iptablesProxy writes iptables rules with one kind of the binaries.
func iptablesProxy(kind string, clusterCIDR bool) proxy {
	restore := func(n node, rules func(ipv6 bool) string) {
		n.t.Helper()
		for _, ipv6 := range []bool{false, true} {
			program := "iptables-" + kind + "-restore"
			if ipv6 {
				program = "ip6tables-" + kind + "-restore"
			}
			n.command(rules(ipv6), program)
		}
	}
	return proxy{
		name: "iptables-" + kind,
		apply: func(n node, services ...kubeproxy.Service) {
			n.t.Helper()
			restore(n, func(ipv6 bool) string { return iptablesRules(services, ipv6, clusterCIDR) })
		},
		clear: func(n node) {
			n.t.Helper()
			restore(n, func(bool) string { return "*filter\nCOMMIT\n*nat\nCOMMIT\n" })
		},
	}
}

// iptablesRules are the rules that kube-proxy v1.37 writes for DNS Services in
// iptables mode, in the form of iptables-restore: the chains for node ports and
// load balancers, which are empty here, are left out.
func iptablesRules(services []kubeproxy.Service, ipv6, clusterCIDR bool) string {
	pods, host := "10.244.0.0/16", 32
	if ipv6 {
		pods, host = "fd00:244::/64", 128
	}
	ofFamily := func(addrs []netip.Addr) (netip.Addr, bool) {
		i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is6() == ipv6 })
		if i < 0 {
			return netip.Addr{}, false
		}
		return addrs[i], true
	}
	var filter, chains, portals, rules strings.Builder
	for i, service := range services {
		clusterIP, ok := ofFamily(service.ClusterIPs)
		if !ok {
			continue
		}
		for _, proto := range []string{"udp", "tcp"} {
			match := fmt.Sprintf("-d %s/%d -p %s -m %s --dport 53", clusterIP, host, proto, proto)
			endpoint, ok := ofFamily(service.Endpoints)
			if !ok {
				fmt.Fprintf(&filter, "-A KUBE-SERVICES %s -j REJECT\n", match)
				continue
			}
			svc, sep := fmt.Sprintf("KUBE-SVC-%d%s", i, strings.ToUpper(proto)), fmt.Sprintf("KUBE-SEP-%d%s", i, strings.ToUpper(proto))
			fmt.Fprintf(&chains, ":%s - [0:0]\n:%s - [0:0]\n", svc, sep)
			fmt.Fprintf(&portals, "-A KUBE-SERVICES %s -j %s\n", match, svc)
			if clusterCIDR {
				fmt.Fprintf(&rules, "-A %s ! -s %s %s -j KUBE-MARK-MASQ\n", svc, pods, match)
			}
			fmt.Fprintf(&rules, "-A %s -j %s\n", svc, sep)
			fmt.Fprintf(&rules, "-A %s -s %s/%d -j KUBE-MARK-MASQ\n", sep, endpoint, host)
			fmt.Fprintf(&rules, "-A %s -p %s -m %s -j DNAT --to-destination %s\n", sep, proto, proto, netip.AddrPortFrom(endpoint, 53))
		}
	}
	return `*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-SERVICES - [0:0]
-A FORWARD -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
` + filter.String() + `COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
` + chains.String() + `-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
` + portals.String() + rules.String() + `COMMIT
`
}

// A change of kube-proxy's kind must not be seen by clients of the failover.
func TestKubeProxyChangesUnderneath(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.install(pairs(n.ClusterDNS()...))
	single := n.singlePortClients()
	during := n.askInBackground(mixed(3000))
	during.await(300)
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"nftables, written anew", func() { nftablesProxy.apply(n, n.Services...) }},
		{"to iptables-legacy", func() { legacyProxy.apply(n, n.Services...); nftablesProxy.clear(n) }},
		{"iptables-legacy, written anew", func() { legacyProxy.apply(n, n.Services...) }},
		{"to iptables-nft", func() { iptablesNFTProxy.apply(n, n.Services...); legacyProxy.clear(n) }},
		{"to nftables", func() { nftablesProxy.apply(n, n.Services...); iptablesNFTProxy.clear(n) }},
	} {
		step.do()
		single.ask(step.what, lab.KubeDNS)
	}
	answeredBy(t, during.figures(), lab.KubeDNS)
	n.noLeaks()
}

// The table follows when the Service gets another address. Queries that are
// under way in that moment are lost.
func TestTheServiceAddressChanges(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.install(pairs(n.ClusterDNS()...))
	single := n.singlePortClients()
	single.ask("the first address", lab.KubeDNS)

	next := []netip.Addr{netip.MustParseAddr("10.96.0.20"), netip.MustParseAddr("fd00:10:96::14")}
	moved := kubeproxy.Service{Name: "kube-system/kube-dns", ClusterIPs: next, Endpoints: n.DNSPod.Addrs}
	during := n.askInBackground(mixed(2000))
	during.await(300)
	single.ask("still the first address", lab.KubeDNS)
	nftablesProxy.apply(n, n.Services[0], moved)
	n.install(pairs(next...))
	nftablesProxy.apply(n, moved)
	single.ask("the second address", lab.KubeDNS)

	figures := during.figures()
	t.Logf("%d of %d queries lost at the change: %v", figures.Lost, figures.Queries, figures.LostTo)
	if figures.Lost > maxLostAtChange {
		t.Errorf("%d of %d queries lost at one change", figures.Lost, figures.Queries)
	}
	answeredBy(t, n.ask(mixed(300)), lab.KubeDNS)
	n.noLeaks()
}
