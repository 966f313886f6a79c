//go:build privileged

package integration

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/lab"
)

// silence is who answers where nobody does.
const silence lab.Responder = ""

// probe asks with one attempt that is given up soon, where silence is wanted.
func probe(t *testing.T, from *lab.Namespace, addr netip.Addr, protocol lab.Protocol) lab.Responder {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	response, err := from.Query(ctx, protocol, addr, new(dns.Msg).SetQuestion("svc-1-2-3.lab.svc.cluster.local.", dns.TypeA))
	if err != nil {
		return silence
	}
	return lab.Identify(response)
}

// whoAnswers asks a place's way into the node at every listen address over both
// protocols, and wants these responders.
type whoAnswers struct {
	from      *lab.Namespace
	cluster   lab.Responder // at the ClusterIPs
	linkLocal lab.Responder // at the address that no Service owns
}

func (w whoAnswers) check(t *testing.T, node *lab.Node) error {
	t.Helper()
	for _, addr := range listenAddresses(node) {
		want := w.cluster
		if addr == lab.LinkLocalDNS4 {
			want = w.linkLocal
		}
		for _, protocol := range []lab.Protocol{lab.UDP, lab.TCP} {
			var got lab.Responder
			if want == silence {
				got = probe(t, w.from, addr, protocol)
			} else {
				var err error
				if got, err = ask(t, w.from, addr, protocol); err != nil {
					return fmt.Errorf("%s %s from %s: %w", protocol, addr, w.from.Name(), err)
				}
			}
			if got != want {
				return fmt.Errorf("%s %s from %s: answered by %q, want %q", protocol, addr, w.from.Name(), got, want)
			}
		}
	}
	return nil
}

// routeDNS leads the listen addresses to the node by these gateways, as somebody
// would who wants to use it as a resolver.
func routeDNS(t *testing.T, ns *lab.Namespace, device, gateway4, gateway6 string) {
	t.Helper()
	for _, addr := range []netip.Addr{lab.LinkLocalDNS4, lab.ClusterDNS4} {
		run(t, ns, "ip", "route", "replace", addr.String(), "via", gateway4, "dev", device)
	}
	run(t, ns, "ip", "-6", "route", "replace", lab.ClusterDNS6.String(), "via", gateway6, "dev", device)
}

// outside is the network behind the uplink, with routes to the node's DNS.
func outside(t *testing.T, node *lab.Node) *lab.Namespace {
	t.Helper()
	routeDNS(t, node.Outside, "node", "192.0.2.10", "2001:db8::10")
	return node.Outside
}

// attachedNamespace makes a namespace at the far end of a veth of the node.
func attachedNamespace(t *testing.T, node *lab.Node, name, link string) *lab.Namespace {
	t.Helper()
	ns, err := lab.NewNamespace(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	run(t, node.Namespace, "ip", "link", "add", link, "type", "veth", "peer", "name", "eth0",
		"netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.FD()))
	run(t, node.Namespace, "ip", "link", "set", link, "up")
	run(t, ns, "ip", "link", "set", "eth0", "up")
	return ns
}

// bridge makes a bridge on the node with the gateways of a pod network, and a pod
// behind it.
func bridge(t *testing.T, node *lab.Node, name string) (pod *lab.Namespace) {
	t.Helper()
	run(t, node.Namespace, "ip", "link", "add", name, "type", "bridge")
	run(t, node.Namespace, "ip", "link", "set", name, "up")
	pod = attachedNamespace(t, node, "bridged-pod", "bridged")
	run(t, node.Namespace, "ip", "link", "set", "bridged", "master", name)
	run(t, node.Namespace, "ip", "address", "add", "10.244.1.1/24", "dev", name)
	run(t, node.Namespace, "ip", "address", "add", "fd00:244:1::1/64", "dev", name, "nodad")
	run(t, pod, "ip", "address", "add", "10.244.1.20/24", "dev", "eth0")
	run(t, pod, "ip", "address", "add", "fd00:244:1::20/64", "dev", "eth0", "nodad")
	run(t, pod, "ip", "route", "add", "default", "via", "10.244.1.1")
	run(t, pod, "ip", "-6", "route", "add", "default", "via", "fd00:244:1::1")
	return pod
}

// bridgeTheUplink puts the uplink into the bridge, which takes its addresses and
// default routes over.
func bridgeTheUplink(t *testing.T, node *lab.Node, name string) {
	t.Helper()
	mac := strings.Fields(run(t, node.Namespace, "ip", "-br", "link", "show", "uplink"))[2]
	run(t, node.Namespace, "ip", "link", "set", name, "address", mac)
	run(t, node.Namespace, "ip", "address", "flush", "dev", "uplink")
	run(t, node.Namespace, "ip", "link", "set", "uplink", "master", name)
	run(t, node.Namespace, "ip", "address", "add", "192.0.2.10/24", "dev", name)
	run(t, node.Namespace, "ip", "address", "add", "2001:db8::10/64", "dev", name, "nodad")
	run(t, node.Namespace, "ip", "route", "replace", "default", "via", "192.0.2.1", "dev", name)
	run(t, node.Namespace, "ip", "-6", "route", "flush", "default")
	run(t, node.Namespace, "ip", "-6", "route", "add", "default", "via", "2001:db8::1", "dev", name)
}

func TestWhoIsServed(t *testing.T) {
	const us, cluster = lab.Trackless, lab.KubeDNS
	for _, tc := range []struct {
		name    string
		options []string
		// prepare changes the node and says who shall be answered by whom.
		prepare func(*testing.T, *lab.Node) []whoAnswers
	}{
		{"point-to-point veths", nil, func(t *testing.T, node *lab.Node) []whoAnswers {
			return []whoAnswers{
				{node.Pods[0].Namespace, us, us},
				{node.Namespace, us, us},
				{outside(t, node), cluster, silence},
			}
		}},
		{"a bridge CNI", nil, func(t *testing.T, node *lab.Node) []whoAnswers {
			return []whoAnswers{
				{bridge(t, node, "cni0"), us, us},
				{node.Pods[0].Namespace, us, us},
				{outside(t, node), cluster, silence},
			}
		}},
		{"a bridge that holds the uplink", []string{"sources 10.244.0.0/16 fd00:244::/32"}, func(t *testing.T, node *lab.Node) []whoAnswers {
			pod := bridge(t, node, "br0")
			bridgeTheUplink(t, node, "br0")
			return []whoAnswers{
				{pod, us, us},
				{node.Pods[0].Namespace, us, us},
				{outside(t, node), cluster, silence},
			}
		}},
		{"a tunnel with pods behind it", nil, func(t *testing.T, node *lab.Node) []whoAnswers {
			vxlan := []string{"ip", "link", "add", "flannel.1", "type", "vxlan", "id", "1", "dstport", "8472"}
			run(t, node.Namespace, vxlan[0], append(vxlan[1:], "local", "192.0.2.10", "remote", "192.0.2.1", "dev", "uplink")...)
			run(t, node.Outside, vxlan[0], append(vxlan[1:], "local", "192.0.2.1", "remote", "192.0.2.10", "dev", "node")...)
			for i, ns := range []*lab.Namespace{node.Namespace, node.Outside} {
				run(t, ns, "ip", "link", "set", "flannel.1", "up")
				run(t, ns, "ip", "address", "add", fmt.Sprintf("10.244.2.%d/24", i+1), "dev", "flannel.1")
				run(t, ns, "ip", "address", "add", fmt.Sprintf("fd00:244:2::%d/64", i+1), "dev", "flannel.1", "nodad")
			}
			routeDNS(t, node.Outside, "flannel.1", "10.244.2.1", "fd00:244:2::1")
			return []whoAnswers{{node.Outside, us, us}, {node.Pods[0].Namespace, us, us}}
		}},
		{"sources any", []string{"sources any"}, func(t *testing.T, node *lab.Node) []whoAnswers {
			return []whoAnswers{
				{outside(t, node), us, us},
				{node.Pods[0].Namespace, us, us},
			}
		}},
		{"sources that name the outside", []string{"sources 192.0.2.0/24 2001:db8::/64"}, func(t *testing.T, node *lab.Node) []whoAnswers {
			return []whoAnswers{
				{outside(t, node), us, us},
				{node.Pods[0].Namespace, us, us},
			}
		}},
		{"uplinks by name", []string{"uplinks veth12"}, func(t *testing.T, node *lab.Node) []whoAnswers {
			return []whoAnswers{
				{node.Pods[0].Namespace, us, us},
				{node.Pods[1].Namespace, cluster, silence},
				{outside(t, node), us, us},
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node := newNode(t)
			places := tc.prepare(t, node)
			notrack := steady
			if tc.options != nil {
				notrack = notrackWith(tc.options...)
			}
			server := serve(t, node, corefile(notrack, "", listenAddresses(node)...))
			for _, w := range places {
				if err := w.check(t, node); err != nil {
					t.Error(err)
				}
			}
			// What is not served is not harmed: without us it is the same.
			if err := server.Close(); err != nil {
				t.Fatal(err)
			}
			for _, w := range places {
				if w.cluster == cluster {
					if who, err := ask(t, w.from, lab.ClusterDNS4, lab.UDP); who != cluster || err != nil {
						t.Errorf("after the stop, from %s: answered by %q, %v", w.from.Name(), who, err)
					}
				}
			}
		})
	}
}

func TestABridgedUplinkNeedsSources(t *testing.T) {
	node := newNode(t)
	bridge(t, node, "br0")
	bridgeTheUplink(t, node, "br0")
	before := state(t, node)
	for _, tc := range []struct {
		name, notrack string
	}{
		{"by its default route", steady},
		{"by its name", notrackWith("uplinks br0")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, output := start(t, node, corefile(tc.notrack, "", listenAddresses(node)...), nil)
			if status != 1 || !strings.Contains(output, "br0 is a bridge") || !strings.Contains(output, "sources CIDR") {
				t.Errorf("status %d, want 1 and a word about br0 and sources:\n%s", status, output)
			}
			if diff := before.Diff(state(t, node)); diff != "" {
				t.Errorf("left behind:\n%s", diff)
			}
		})
	}
}

// Pods and the world behind one bridge cannot be told apart. When it becomes the
// uplink while we run nobody behind it is served, and the log says why.
func TestABridgeBecomesTheUplink(t *testing.T) {
	node := newNode(t)
	pod := bridge(t, node, "br0")
	server := serve(t, node, corefile(steady, "", listenAddresses(node)...))
	before := whoAnswers{pod, lab.Trackless, lab.Trackless}
	eventually(t, "a pod behind the bridge is served", func() error { return before.check(t, node) })
	bridgeTheUplink(t, node, "br0")
	after := whoAnswers{pod, lab.KubeDNS, silence}
	eventually(t, "it is served by the cluster", func() error { return after.check(t, node) })
	eventually(t, "the log says so", func() error {
		if n := strings.Count(server.Output(), "br0 has become an uplink"); n != 1 {
			return fmt.Errorf("said %d times:\n%s", n, server.Output())
		}
		return nil
	})
}

func TestUplinksThatAreNone(t *testing.T) {
	node := newNode(t)
	bridge(t, node, "br0")
	bridgeTheUplink(t, node, "br0")
	text := func(notrack string) string { return corefile(notrack, "", listenAddresses(node)...) }
	status, output := start(t, node, text(notrackWith("uplinks uplink", "sources 10.244.0.0/16")), nil)
	if status != 1 || !strings.Contains(output, "uplink: it is a port of br0") || !strings.Contains(output, "name br0 instead") {
		t.Errorf("status %d, want 1 and a word about br0:\n%s", status, output)
	}
	begin(t, node, text(notrackWith("uplinks eth9")), "uplinks eth9: there is no such interface")
}

// The default route is moved while we run. No look at the node is due for an
// hour, so only the kernel's announcement can tell.
func TestUplinksFollowTheDefaultRoute(t *testing.T) {
	node := newNode(t)
	first := outside(t, node)
	second := attachedNamespace(t, node, "outside-2", "uplink2")
	run(t, node.Namespace, "ip", "address", "add", "198.51.100.10/24", "dev", "uplink2")
	run(t, node.Namespace, "ip", "address", "add", "2001:db8:2::10/64", "dev", "uplink2", "nodad")
	run(t, second, "ip", "address", "add", "198.51.100.1/24", "dev", "eth0")
	run(t, second, "ip", "address", "add", "2001:db8:2::1/64", "dev", "eth0", "nodad")
	routeDNS(t, second, "eth0", "198.51.100.10", "2001:db8:2::10")

	serve(t, node, corefile(notrackWith("sync 1h"), "", listenAddresses(node)...))
	expect := func(what string, all ...whoAnswers) {
		t.Helper()
		eventually(t, what, func() error {
			for _, w := range all {
				if err := w.check(t, node); err != nil {
					return err
				}
			}
			return nil
		})
	}
	expect("before",
		whoAnswers{first, lab.KubeDNS, silence},
		whoAnswers{second, lab.Trackless, lab.Trackless})
	run(t, node.Namespace, "ip", "route", "replace", "default", "via", "198.51.100.1", "dev", "uplink2")
	run(t, node.Namespace, "ip", "-6", "route", "flush", "default")
	run(t, node.Namespace, "ip", "-6", "route", "add", "default", "via", "2001:db8:2::1", "dev", "uplink2")
	expect("after",
		whoAnswers{second, lab.KubeDNS, silence},
		whoAnswers{first, lab.Trackless, lab.Trackless},
		whoAnswers{node.Pods[0].Namespace, lab.Trackless, lab.Trackless})
	if uplinks := run(t, node.Namespace, "nft", "list", "set", "inet", tableName(t, node), "uplinks"); slices.Contains(strings.Fields(uplinks), `"uplink"`) {
		t.Errorf("the former uplink is still one:\n%s", uplinks)
	}
}
