package lab

import (
	"fmt"
	"net/netip"
	"strconv"
)

// Gateways of the pods: an address on the node's end of each veth, or one that
// exists nowhere, as Calico has it.
var (
	gateway4 = netip.MustParseAddr("10.244.0.1")
	gateway6 = netip.MustParseAddr("fd00:244::1")

	addresslessGateway4 = netip.MustParseAddr("169.254.1.1")
	addresslessGateway6 = netip.MustParseAddr("fe80::ecee:eeff:feee:eeee")
)

// A Pod is a network namespace behind a point-to-point veth.
type Pod struct {
	*Namespace

	// Addrs are the pod's addresses, IPv4 first: 10.244.0.N and fd00:244::N,
	// with the same digits.
	Addrs []netip.Addr

	// HostLink is the name of the node's end of the veth.
	HostLink string
}

func (n *Node) addPod(number int, addressless bool) (*Pod, error) {
	digits := strconv.Itoa(number)
	ns, err := n.newNamespace("pod-" + digits)
	if err != nil {
		return nil, err
	}
	pod := &Pod{Namespace: ns, HostLink: "veth" + digits}
	near, far, err := n.Namespace.connect(pod.HostLink, ns, "eth0")
	if err != nil {
		return nil, err
	}
	gateways := []netip.Addr{gateway4, gateway6}
	if addressless {
		gateways = []netip.Addr{addresslessGateway4, addresslessGateway6}
	}
	for i, text := range []string{"10.244.0." + digits, "fd00:244::" + digits} {
		addr := netip.MustParseAddr(text)
		if addr.Is6() && !n.ipv6 {
			continue
		}
		pod.Addrs = append(pod.Addrs, addr)
		if err := plug(near, far, addr, gateways[i], addressless); err != nil {
			return nil, fmt.Errorf("connect pod %s: %w", addr, err)
		}
	}
	return pod, nil
}

// plug gives the pod's end its address and its way out, and the node the way
// to it. Both sides know each other's link-layer address for good.
func plug(near, far linkEnd, addr, gateway netip.Addr, addressless bool) error {
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if addr.Is6() {
		all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	steps := []func() error{
		func() error { return far.addAddress(host(addr)) },
		func() error { return far.addNeighbour(gateway, near.mac) },
		func() error { return far.addRoute(host(gateway), netip.Addr{}) },
		func() error { return far.addRoute(all, gateway) },
		func() error { return near.addNeighbour(addr, far.mac) },
		func() error { return near.addRoute(host(addr), netip.Addr{}) },
	}
	if !addressless {
		steps = append(steps, func() error { return near.addAddress(host(gateway)) })
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func host(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }
