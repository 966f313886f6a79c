package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/trackless-dns/trackless/lab/kubeproxy"
)

// MaxPods is how many client pods a node can have. It keeps their addresses below that of kube-dns, 10.244.0.53.
const MaxPods = 40

// Options say what a node is made of. The zero Options make the node that
// `trackless lab` measures: two pods, kube-dns and kube-proxy's rules, IPv4 and
// IPv6, served by this very executable.
type Options struct {
	// Program is the trackless binary that servers run. Empty means what this
	// process itself is running, which must then be trackless.
	Program string

	// Pods is the number of client pods, 2 if 0, at most 40.
	Pods int

	// AddresslessVeths leaves the node's ends of the veths without addresses,
	// as Calico does. Otherwise each holds the gateway address 10.244.0.1, as
	// with the ptp plugin.
	AddresslessVeths bool

	// WithoutIPv6 builds an IPv4 node, as on machines booted with
	// ipv6.disable=1.
	WithoutIPv6 bool

	// WithoutKubeDNS leaves the kube-dns pod empty: nothing answers there.
	WithoutKubeDNS bool

	// WithoutKubeProxy installs no rules; Node.KubeProxy can do so later.
	WithoutKubeProxy bool
}

// A Node is a Kubernetes node in network namespaces of its own. Its methods
// may be called from several goroutines once NewNode has returned.
type Node struct {
	// Namespace is where the node's own processes run (hostNetwork).
	Namespace *Namespace

	// Outside is the network behind the node's uplink.
	Outside *Namespace

	// Pods are the client pods.
	Pods []*Pod

	// DNSPod is where kube-dns runs.
	DNSPod *Pod

	// KubeDNS is the server in DNSPod, nil if Options.WithoutKubeDNS.
	KubeDNS *Server

	// KubeProxy writes the node's Service rules.
	KubeProxy *kubeproxy.Proxy

	// Services are those that kube-proxy was given.
	Services []kubeproxy.Service

	program string
	ipv6    bool
	closers []func() error
}

// NewNode builds a node and returns when kube-dns answers. The context bounds
// the building only. After an error nothing is left, as
// after Close.
func NewNode(ctx context.Context, options Options) (*Node, error) {
	node := &Node{program: options.Program, ipv6: !options.WithoutIPv6}
	// A panic on the way must not leave children behind in a process that
	// survives it.
	built := false
	defer func() {
		if !built {
			_ = node.Close()
		}
	}()
	if err := node.build(ctx, options); err != nil {
		built = true
		return nil, errors.Join(fmt.Errorf("build the lab node: %w", err), node.Close())
	}
	built = true
	return node, nil
}

// Close ends all children and gives up the namespaces, in the reverse order of
// their making. Closing twice is harmless.
func (n *Node) Close() error {
	var errs []error
	for len(n.closers) > 0 {
		last := len(n.closers) - 1
		closer := n.closers[last]
		n.closers = n.closers[:last]
		errs = append(errs, closer())
	}
	return errors.Join(errs...)
}

// IPv6 reports whether the node has IPv6.
func (n *Node) IPv6() bool { return n.ipv6 }

func (n *Node) build(ctx context.Context, options Options) error {
	pods := options.Pods
	if pods == 0 {
		pods = 2
	}
	if pods < 1 || pods > MaxPods {
		return fmt.Errorf("%d pods: a lab node has 1 to %d", pods, MaxPods)
	}
	if n.program == "" {
		// Right even where the file was replaced or removed meanwhile.
		n.program = "/proc/self/exe"
	}

	var err error
	if n.Namespace, err = n.newNamespace("node"); err != nil {
		return err
	}
	if err := n.forwardPackets(); err != nil {
		return err
	}
	if err := n.addUplink(); err != nil {
		return err
	}
	for i := range pods {
		pod, err := n.addPod(11+i, options.AddresslessVeths)
		if err != nil {
			return err
		}
		n.Pods = append(n.Pods, pod)
	}
	if n.DNSPod, err = n.addPod(53, options.AddresslessVeths); err != nil {
		return err
	}
	n.KubeProxy = kubeproxy.New(n.Namespace.FD(), n.Namespace.Name(), n.ipv6)
	n.Services = n.services()
	if !options.WithoutKubeProxy {
		if err := n.KubeProxy.Apply(n.Services...); err != nil {
			return err
		}
	}
	if options.WithoutKubeDNS {
		return nil
	}
	return n.startKubeDNS(ctx)
}

// forwardPackets makes the node a router, and its IPv6 addresses usable
// without duplicate address detection.
func (n *Node) forwardPackets() error {
	sysctls := map[string]string{"net/ipv4/ip_forward": "1"}
	if n.ipv6 {
		sysctls["net/ipv6/conf/all/forwarding"] = "1"
	}
	return n.Namespace.setSysctls(sysctls)
}

// addUplink gives the node an address and a default route, as every node has:
// what kube-proxy translates must first be routable.
func (n *Node) addUplink() error {
	outside, err := n.newNamespace("outside")
	if err != nil {
		return err
	}
	n.Outside = outside
	near, far, err := n.Namespace.connect("uplink", outside, "node")
	if err != nil {
		return err
	}
	for _, link := range []struct {
		node, router, all string
		ipv6              bool
	}{
		{"192.0.2.10/24", "192.0.2.1/24", "0.0.0.0/0", false},
		{"2001:db8::10/64", "2001:db8::1/64", "::/0", true},
	} {
		if link.ipv6 && !n.ipv6 {
			continue
		}
		node, router := netip.MustParsePrefix(link.node), netip.MustParsePrefix(link.router)
		err := errors.Join(near.addAddress(node), far.addAddress(router))
		if err == nil {
			err = errors.Join(
				near.addNeighbour(router.Addr(), far.mac),
				far.addNeighbour(node.Addr(), near.mac),
				near.addRoute(netip.MustParsePrefix(link.all), router.Addr()),
			)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) services() []kubeproxy.Service {
	vips := func(v4, v6 netip.Addr) []netip.Addr {
		if n.ipv6 {
			return []netip.Addr{v4, v6}
		}
		return []netip.Addr{v4}
	}
	return []kubeproxy.Service{
		{Name: "kube-system/kube-dns", ClusterIPs: vips(ClusterDNS4, ClusterDNS6), Endpoints: n.DNSPod.Addrs},
		{Name: "kube-system/kube-dns-upstream", ClusterIPs: vips(UpstreamDNS4, UpstreamDNS6), Endpoints: n.DNSPod.Addrs},
	}
}

// ClusterDNS are the addresses of the kube-dns Service, IPv4 first.
func (n *Node) ClusterDNS() []netip.Addr { return n.Services[0].ClusterIPs }

// UpstreamDNS are the addresses of the kube-dns-upstream Service, IPv4 first.
func (n *Node) UpstreamDNS() []netip.Addr { return n.Services[1].ClusterIPs }

// Serve starts `trackless serve` in the node's namespace with the Corefile
// given as text. It does not wait until it answers; Server.AwaitAnswer
// does. The server is killed with the node at the latest; stop it
// with Stop, Kill or Close to see how it ends.
func (n *Node) Serve(corefile string) (*Server, error) {
	server, err := n.Namespace.StartServer("trackless", n.program, corefile)
	if err != nil {
		return nil, err
	}
	n.closers = append(n.closers, server.abandon)
	return server, nil
}

// ServeAttached starts the node's cache, whose prometheus directive names the
// address, and returns when its rules are in
// force at every listen address, with an empty table: what was recorded until
// then, such as the scrapes that waited for it, is not what is measured.
func (n *Node) ServeAttached(ctx context.Context, corefile, metrics string) (*Server, error) {
	server, err := n.Serve(corefile)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := server.AwaitAttached(ctx, metrics); err != nil {
		return nil, err
	}
	server.client.CloseIdleConnections()
	return server, n.Flush()
}

func (n *Node) startKubeDNS(ctx context.Context) error {
	server, err := n.DNSPod.StartServer("kube-dns", n.program, kubeDNSCorefile)
	if err != nil {
		return err
	}
	n.closers = append(n.closers, server.abandon)
	n.KubeDNS = server
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	// Asked over its own loopback, so that the node's table stays empty.
	for _, protocol := range []Protocol{UDP, TCP} {
		if err := server.AwaitAnswer(ctx, n.DNSPod.Namespace, protocol, netip.AddrFrom4([4]byte{127, 0, 0, 1}), KubeDNS); err != nil {
			return err
		}
	}
	return nil
}

// startTimeout is how long a server may take until it answers: linking in all
// of CoreDNS, reading a Corefile and binding takes a tenth of a second on an
// idle machine.
const startTimeout = time.Minute

func (n *Node) newNamespace(name string) (*Namespace, error) {
	ns, err := NewNamespace(name)
	if err != nil {
		return nil, err
	}
	n.closers = append(n.closers, ns.Close)
	if n.ipv6 {
		// Before any link is made, so that link-local addresses are usable at
		// once too and no packets of IPv6's own appear in the counts.
		err = ns.setSysctls(map[string]string{
			"net/ipv6/conf/default/accept_dad":           "0",
			"net/ipv6/conf/default/router_solicitations": "0",
		})
	}
	return ns, err
}
