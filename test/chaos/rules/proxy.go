package rules

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/trackless-dns/trackless/lab/kubeproxy"
	"github.com/trackless-dns/trackless/test/chaos/scene"
)

// A proxyMode is one of kube-proxy's.
type proxyMode string

// The modes, those of iptables by the variant of the binaries.
const (
	proxyNFTables       proxyMode = "nftables"
	proxyIPTablesLegacy proxyMode = "iptables-legacy"
	proxyIPTablesNFT    proxyMode = "iptables-nft"
)

// applyProxy installs the rules that kube-proxy has in the mode.
func applyProxy(s *scene.Scene, mode proxyMode) error {
	if mode == proxyNFTables {
		return s.Node.KubeProxy.Apply(s.Node.Services...)
	}
	return restoreProxy(s, mode, func(ipv6 bool) string { return proxyRules(s.Node.Services, ipv6) })
}

// removeProxy takes them away, as `kube-proxy --cleanup` does.
func removeProxy(s *scene.Scene, mode proxyMode) error {
	if mode == proxyNFTables {
		return s.Node.KubeProxy.Remove()
	}
	return restoreProxy(s, mode, func(bool) string { return emptyTables })
}

func restoreProxy(s *scene.Scene, mode proxyMode, rules func(ipv6 bool) string) error {
	variant := strings.TrimPrefix(string(mode), "iptables-")
	for _, family := range []struct {
		program string
		ipv6    bool
	}{{"iptables", false}, {"ip6tables", true}} {
		program := family.program + "-" + variant + "-restore"
		if _, err := scene.RunProgram(s.Node.Namespace, rules(family.ipv6), program, "-w", "5"); err != nil {
			return err
		}
	}
	return nil
}

// emptyTables empties the tables that kube-proxy uses.
const emptyTables = `*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
COMMIT
`

// proxyRules are kube-proxy's rules in iptables mode for the Services, as
// `iptables-save` shows them on a node of v1.37 with the pod network
// 10.244.0.0/16, less those for node ports.
func proxyRules(services []kubeproxy.Service, ipv6 bool) string {
	podCIDR := "10.244.0.0/16"
	if ipv6 {
		podCIDR = "fd00:244::/64"
	}
	var chains, dispatch, rules strings.Builder
	for i, service := range services {
		vip, endpoint := kubeproxy.Address(service.ClusterIPs, ipv6), kubeproxy.Address(service.Endpoints, ipv6)
		if !vip.IsValid() || !endpoint.IsValid() {
			continue
		}
		for _, protocol := range []string{"udp", "tcp"} {
			name := fmt.Sprintf("%s:dns-%s", service.Name, protocol)
			id := fmt.Sprintf("%02d%s", i, strings.ToUpper(protocol))
			match := fmt.Sprintf("-d %s -p %s -m comment --comment %q -m %s --dport 53", vip, protocol, name+" cluster IP", protocol)
			fmt.Fprintf(&chains, ":KUBE-SVC-%s - [0:0]\n:KUBE-SEP-%s - [0:0]\n", id, id)
			fmt.Fprintf(&dispatch, "-A KUBE-SERVICES %s -j KUBE-SVC-%s\n", match, id)
			fmt.Fprintf(&rules, "-A KUBE-SVC-%s ! -s %s %s -j KUBE-MARK-MASQ\n", id, podCIDR, match)
			fmt.Fprintf(&rules, "-A KUBE-SVC-%s -m comment --comment %q -j KUBE-SEP-%s\n", id, name, id)
			fmt.Fprintf(&rules, "-A KUBE-SEP-%s -s %s -m comment --comment %q -j KUBE-MARK-MASQ\n", id, endpoint, name)
			fmt.Fprintf(&rules, "-A KUBE-SEP-%s -p %s -m comment --comment %q -m %s -j DNAT --to-destination %s\n",
				id, protocol, name, protocol, netip.AddrPortFrom(endpoint, 53))
		}
	}
	return `*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
` + chains.String() + `-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
` + dispatch.String() + rules.String() + "COMMIT\n"
}
