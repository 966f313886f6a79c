//go:build privileged

package failover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/failover"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/labtest"
	"github.com/trackless-dns/trackless/lab/load"
)

// Where the listen addresses may be while nobody serves them.
var places = []struct {
	name  string
	place func(node)
}{
	{"removed", func(node) {}},
	{"left on lo", func(n node) { n.putAddresses("lo") }},
	{"left on a link", func(n node) {
		// What a dummy is to the routing code, also where the kernel has none.
		n.command("", "ip", "link", "add", "nodelocaldns", "type", "bridge")
		n.command("", "ip", "link", "set", "nodelocaldns", "up")
		n.putAddresses("nodelocaldns")
	}},
}

// putAddresses does what iptables/hostaddr does.
func (n node) putAddresses(link string) {
	n.t.Helper()
	n.command("", "ip", "address", "add", listen4.String()+"/32", "scope", "host", "dev", link)
	n.command("", "ip", "address", "add", listen6.String()+"/128", "dev", link, "nodad", "preferred_lft", "0")
}

func TestKubeDNSAnswersAtTheListenAddresses(t *testing.T) {
	for _, kubeProxy := range proxies {
		for _, place := range places {
			for _, addressless := range []bool{false, true} {
				name := fmt.Sprintf("%s/%s/addressless veths %t", kubeProxy.name, place.name, addressless)
				t.Run(name, func(t *testing.T) {
					n := newNode(t, lab.Options{WithoutKubeProxy: true, AddresslessVeths: addressless})
					kubeProxy.apply(n, n.Services...)
					place.place(n)
					n.install(pairs(n.ClusterDNS()...))
					n.singlePortClients().ask("alone", lab.KubeDNS)
					answeredBy(t, n.ask(mixed(300)), lab.KubeDNS)
					n.noLeaks()
					n.ownZone()
				})
			}
		}
	}
}

// ownZone fails the test unless the table holds flows of the failover, in their
// zone, that map back to the listen addresses and whose responses come to an
// address that others can reach.
func (n node) ownZone() {
	n.t.Helper()
	found := map[netip.Addr]int{}
	n.entries(func(e *conntrack.Entry) {
		for _, addr := range listen {
			if e.Original.Dst == addr || e.Reply.Dst == addr {
				n.t.Errorf("entry with a listen address where others must answer: %+v / %+v", e.Original, e.Reply)
			}
		}
		asked, ok := failover.ListenOf(pairs(n.ClusterDNS()...), e.Original.Zone, e.Original.Destination())
		if !ok {
			return
		}
		if e.Reply.Zone != 0 {
			n.t.Errorf("responses belong in the default zone: %+v", e.Reply)
		}
		found[asked.Addr()]++
	})
	for _, addr := range listen {
		if found[addr] == 0 {
			n.t.Errorf("no entry of the table maps back to %s", addr)
		}
	}
}

// The negative run: what the table is for.
func TestWithoutTheTableAllIsLost(t *testing.T) {
	for _, place := range places {
		t.Run(place.name, func(t *testing.T) {
			n := newNode(t, lab.Options{})
			place.place(n)
			load := mixed(100)
			load.Timeout = 500 * time.Millisecond
			if f := n.ask(load); f.Lost != f.Queries {
				t.Errorf("%d of %d queries lost without a failover table: these tests prove nothing", f.Lost, f.Queries)
			}
		})
	}
}

func TestDirectUseOfTheServiceIsLeftAlone(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.install(pairs(n.ClusterDNS()...))
	direct := mixed(300)
	direct.Targets = n.ClusterDNS()
	answeredBy(t, n.ask(direct), lab.KubeDNS)
	if got := n.rewritten(iptables.Query, iptables.Response); got != 0 {
		t.Errorf("%d packets of direct queries were rewritten", got)
	}
	// One socket asks both addresses in turn: the same client and port, the
	// same endpoint behind both.
	for _, from := range []*lab.Namespace{n.Pods[0].Namespace, n.Namespace} {
		for i, addr := range listen {
			socket := n.socket(from, addr.Is6())
			for range 5 {
				for _, server := range []netip.Addr{addr, n.ClusterDNS()[i]} {
					if got, err := exchange(socket, netip.AddrPortFrom(server, 53)); err != nil || got != lab.KubeDNS {
						t.Fatalf("%s asks %s: answered by %q, %v", from.Name(), server, got, err)
					}
				}
			}
		}
	}
}

// Two listen addresses of one Service, asked from one port.
func TestTwoAddressesOfOneService(t *testing.T) {
	n := newNode(t, lab.Options{})
	second := netip.MustParseAddr("169.254.20.11")
	n.install(append(pairs(n.ClusterDNS()...), failover.Pair{Listen: second, Service: lab.ClusterDNS4}))
	for _, from := range []*lab.Namespace{n.Pods[0].Namespace, n.Namespace} {
		socket := n.socket(from, false)
		for range 5 {
			for _, server := range []netip.Addr{listen4, second} {
				if got, err := exchange(socket, netip.AddrPortFrom(server, 53)); err != nil || got != lab.KubeDNS {
					t.Fatalf("%s asks %s: answered by %q, %v", from.Name(), server, got, err)
				}
			}
		}
	}
}

// Where kube-dns is, and where kube-proxy does not masquerade what the node
// itself sends: its source is the listen address, which nobody else can reach.
func TestEndpoints(t *testing.T) {
	const node4, node6, outside4, outside6 = "192.0.2.10", "2001:db8::10", "192.0.2.1", "2001:db8::1"
	for _, kubeProxy := range []proxy{nftablesProxy, legacyProxy, unmasqueradingProxy} {
		for _, tc := range []struct {
			name   string
			addrs  []string
			server func(node) *lab.Namespace
			pods   bool // whether the pods can reach it
		}{
			{"host network of this node", []string{node4, node6}, func(n node) *lab.Namespace { return n.Namespace }, true},
			{"another node", []string{outside4, outside6}, func(n node) *lab.Namespace { return n.Outside }, false},
		} {
			name := kubeProxy.name
			if kubeProxy.name == unmasqueradingProxy.name {
				name += ", no cluster CIDR"
			}
			t.Run(name+"/"+tc.name, func(t *testing.T) {
				n := newNode(t, lab.Options{WithoutKubeProxy: true, WithoutKubeDNS: true})
				service := n.Services[0]
				service.Endpoints = []netip.Addr{netip.MustParseAddr(tc.addrs[0]), netip.MustParseAddr(tc.addrs[1])}
				kubeProxy.apply(n, service)
				n.putAddresses("lo")
				n.install(pairs(n.ClusterDNS()...))

				n.serveKubeDNS(tc.server(n), service.Endpoints)
				clients := []*lab.Namespace{n.Namespace}
				if tc.pods {
					clients = append(clients, n.Pods[0].Namespace)
				}
				for _, from := range clients {
					n.askAll(from, lab.KubeDNS)
				}
				n.noLeaks()
			})
		}
	}
}

// An address that is nobody's ClusterIP, such as the resolver of the network:
// no NAT of kube-proxy's finds the way again for what the node itself sends.
func TestAddressThatKubeProxyDoesNotKnow(t *testing.T) {
	n := newNode(t, lab.Options{WithoutKubeProxy: true, WithoutKubeDNS: true})
	resolver := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	n.putAddresses("lo")
	n.install(pairs(resolver...))
	n.serveKubeDNS(n.Outside, resolver)
	n.askAll(n.Namespace, lab.KubeDNS)
	n.noLeaks()
}

// serveKubeDNS runs another kube-dns in the namespace until the test ends.
func (n node) serveKubeDNS(in *lab.Namespace, addrs []netip.Addr) {
	n.t.Helper()
	server, err := in.StartServer("kube-dns", labtest.Program(n.t), fmt.Sprintf(`.:53 {
    bind %s %s
    template IN A . {
        answer "{{ .Name }} 3600 IN A 10.100.1.1"
    }
}
`, addrs[0], addrs[1]))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := server.Close(); err != nil {
			n.t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	for _, addr := range addrs {
		if err := server.AwaitAnswer(ctx, in, lab.TCP, addr, lab.KubeDNS); err != nil {
			n.t.Fatal(err)
		}
	}
}

// Between veths nobody looks at checksums unless the sender computes them, as
// every sender does whose packets have crossed a wire. The node's own UDP over
// IPv6 is left out: see the remark at the rewrite of responses.
func TestChecksums(t *testing.T) {
	n := newNode(t, lab.Options{Pods: 1})
	for _, pod := range append(n.Pods, n.DNSPod) {
		computeChecksums(t, pod.Namespace, "eth0")
		computeChecksums(t, n.Namespace, pod.HostLink)
	}
	n.install(pairs(n.ClusterDNS()...))
	for _, from := range []struct {
		name    string
		targets []netip.Addr
		mix     load.Mix
	}{
		{"pods", listen, load.Mix{TCP: 0.5, IPv6: 0.5}},
		{"node, IPv4", listen[:1], load.Mix{TCP: 0.5, FromNode: 1}},
		{"node, IPv6", listen[1:], load.Mix{TCP: 1, IPv6: 1, FromNode: 1}},
	} {
		t.Run(from.name, func(t *testing.T) {
			answeredBy(t, n.ask(load.Load{Queries: 100, Rate: 1000, Targets: from.targets, Mix: &from.mix}), lab.KubeDNS)
		})
	}
}

// computeChecksums makes the kernel compute the checksums of what it sends on
// the link, instead of leaving it to the device (ethtool -K LINK tx off).
func computeChecksums(t *testing.T, ns *lab.Namespace, link string) {
	t.Helper()
	value := struct{ cmd, data uint32 }{unix.ETHTOOL_STXCSUM, 0}
	request := struct { // struct ifreq of linux/if.h
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:], link)
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		t.Fatalf("turn off checksum offload of %s in %s: %v", link, ns.Name(), err)
	}
}

// A reset of a connection that nobody knows is no flow: conntrack refuses it
// and no NAT touches it. It is rewritten all the same, and must not go out.
func TestStraysStayOnTheNode(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.putAddresses("lo")
	n.install(pairs(n.ClusterDNS()...))
	const flagReset = 0x04
	header := []byte{100, 0, 0, 53, 0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, flagReset, 0, 0, 0, 0, 0, 0}
	before := n.rewritten(iptables.Query)
	for _, addr := range listen {
		err := n.Namespace.Do(func() error {
			conn, err := net.ListenIP(map[bool]string{false: "ip4:tcp", true: "ip6:tcp"}[addr.Is6()], &net.IPAddr{IP: addr.AsSlice()})
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.WriteToIP(header, &net.IPAddr{IP: addr.AsSlice()})
			return err
		})
		// The sender hears of the drop.
		if err != nil && !errors.Is(err, unix.EPERM) {
			t.Fatal(err)
		}
	}
	if got := n.rewritten(iptables.Query) - before; got != 2 {
		t.Errorf("%d of 2 strays were rewritten: this test proves nothing", got)
	}
	n.noLeaks()
}
