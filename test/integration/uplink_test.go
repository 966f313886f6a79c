//go:build privileged

package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/lab"
)

// Whatever shape the default route has: who comes in over the uplink is answered
// by the cluster at a Service address, and by nobody at the other, whether we live
// or are dead. The pods are served all the time.
func TestNobodyOutsideIsServed(t *testing.T) {
	const via4, via6 = "via 192.0.2.1 dev uplink", "via 2001:db8::1 dev uplink"
	shapes := []struct {
		name  string
		late  bool     // the routes come when we are attached
		notes []string // options of notrack
		shape []string // commands on a node without default routes
	}{
		{"a gateway", false, nil, []string{"ip route add default " + via4, "ip -6 route add default " + via6}},
		{"a nexthop object", false, nil, []string{"ip nexthop add id 20 " + via4, "ip route add default nhid 20"}},
		{"a group of nexthop objects", false, nil, []string{"ip nexthop add id 20 " + via4, "ip nexthop add id 30 group 20", "ip route add default nhid 30"}},
		{"a nexthop object of IPv6", false, nil, []string{"ip nexthop add id 20 " + via6, "ip -6 route add default nhid 20"}},
		{"two halves", false, nil, []string{"ip route add 0.0.0.0/1 " + via4, "ip route add 128.0.0.0/1 " + via4}},
		{"the global addresses of IPv6", false, nil, []string{"ip -6 route add 2000::/3 " + via6}},
		{"a table that a rule leads to", false, nil, []string{"ip route add default " + via4 + " table 100", "ip rule add priority 40000 from all table 100"}},
		{"several ways", false, nil, []string{"ip route add default nexthop " + via4 + " nexthop via 192.0.2.2 dev uplink"}},
		{"a gateway of the other family", false, nil, []string{"ip route add default via inet6 2001:db8::1 dev uplink"}},
		{"two halves that come later", true, nil, []string{"ip route add 0.0.0.0/1 " + via4, "ip route add 128.0.0.0/1 " + via4}},
		{"a rule that comes later", true, nil, []string{"ip route add default " + via4 + " table 100", "ip rule add priority 40000 from all table 100"}},
		{"a nexthop object that comes to the uplink later", true, nil, []string{
			"ip nexthop add id 20 dev veth12", "ip route add default nhid 20", "ip nexthop replace id 20 " + via4}},
		{"a name", false, []string{"uplinks uplink"}, nil},
		{"iptables, a nexthop object", false, []string{"backend iptables", "lease 1s"}, []string{"ip nexthop add id 20 " + via4, "ip route add default nhid 20"}},
	}
	for _, tc := range shapes {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			node := newNode(t)
			from := outside(t, node)
			run(t, node.Namespace, "sysctl", "-qw", "net.ipv4.nexthop_compat_mode=0")
			run(t, node.Namespace, "ip", "route", "flush", "default")
			run(t, node.Namespace, "ip", "-6", "route", "flush", "default")
			// What kube-proxy translates must first be routable.
			run(t, node.Namespace, "ip", "route", "add", "10.96.0.0/12", "via", "192.0.2.1")
			change := func() {
				for _, command := range tc.shape {
					words := strings.Fields(command)
					run(t, node.Namespace, words[0], words[1:]...)
				}
			}
			if !tc.late {
				change()
			}
			server := serve(t, node, corefile(notrackWith(append(tc.notes, "sync 1h")...), "", listenAddresses(node)...))
			if tc.late {
				change()
			}
			unserved := func() error {
				overTCP := make(chan lab.Responder, 1)
				go func() { overTCP <- probe(t, from, lab.LinkLocalDNS4, lab.TCP) }()
				udp, tcp := probe(t, from, lab.LinkLocalDNS4, lab.UDP), <-overTCP
				if udp != silence || tcp != silence {
					return fmt.Errorf("answered by %q over UDP, by %q over TCP", udp, tcp)
				}
				return nil
			}
			served := func(by lab.Responder) func() error {
				return func() error {
					who, err := ask(t, node.Pods[0].Namespace, lab.LinkLocalDNS4, lab.UDP)
					if err == nil && who != by {
						err = fmt.Errorf("a pod is answered by %s, want %s", who, by)
					}
					return err
				}
			}
			eventually(t, "nobody outside is served while we live", unserved)
			eventually(t, "pods are served by us", served(lab.Trackless))
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "pods are served by the cluster", served(lab.KubeDNS))
			if err := unserved(); err != nil {
				t.Errorf("while we are dead: %v", err)
			}
			if err := (whoAnswers{node.Pods[0].Namespace, lab.KubeDNS, lab.KubeDNS}).check(t, node); err != nil {
				t.Errorf("while we are dead: %v", err)
			}
		})
	}
}
