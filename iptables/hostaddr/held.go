package hostaddr

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// ipvsLink is the dummy link on which kube-proxy in IPVS mode keeps the addresses
// of all Services.
const ipvsLink = "kube-ipvs0"

// resolveHolders removes the addresses from links that dead instances left. It fails
// if another interface holds one of them.
func (h *Host) resolveHolders(conn *conn, addrs []netip.Addr) error {
	left := map[uint32][]netip.Addr{} // by device
	for _, p := range conn.present {
		if !slices.Contains(addrs, p.addr) || onLoopbackAlways(p.addr) {
			continue
		}
		name := conn.names[p.index]
		if own, err := h.isOfNode(conn, p); err != nil {
			return err
		} else if own {
			return heldByNode(p, name)
		}
		if h.link == "" || name == h.link || name == h.device || name == loopback && p.ours() {
			continue
		}
		gone, err := h.leftBehind(conn, p)
		if err != nil {
			return err
		}
		if !gone {
			return heldByOther(p, name)
		}
		left[p.index] = append(left[p.index], p.addr)
	}
	for index, addrs := range left {
		if err := h.removeLeft(conn, index, addrs); err != nil {
			return err
		}
	}
	return nil
}

// isOfNode reports whether an address is one of the node itself or a gateway: the
// source of packets of this node, or an address with a network behind it. An address on
// a link that was made for listen addresses is neither.
func (h *Host) isOfNode(conn *conn, p address) (bool, error) {
	kind, err := conn.linkKind(p.index)
	if err != nil || p.ours() || kind == h.cfg.kind && conn.names[p.index] == h.link {
		return false, err
	}
	if usual, ok := conn.usualSource(p.addr); ok && usual == p.addr {
		return true, nil
	}
	if conn.names[p.index] == loopback {
		return false, nil
	}
	if int(p.bits) < p.addr.BitLen() {
		return kind != h.cfg.kind, nil
	}
	return slices.Contains(nodeKinds, kind), nil
}

// nodeKinds are the kinds of devices on which also an address without a network is
// the node's: hardware, whose kind is empty, devices that lead to a pod, and tunnels.
var nodeKinds = []string{"", "veth", "netkit", "bond", "team", "vlan", "ipip", "sit", "ip6tnl", "gre", "ip6gre", "vxlan", "geneve", "wireguard"}

// leftBehind reports whether a dead instance left the address: one whose link had
// another name, or Kubernetes' node-cache. It fails if anybody uses the address.
func (h *Host) leftBehind(conn *conn, p address) (bool, error) {
	name := conn.names[p.index]
	kind, err := conn.linkKind(p.index)
	if err != nil {
		return false, err
	}
	// Linux before 5.18 keeps no mark, and node-cache sets none.
	if h.cfg.Claims == nil || !p.ours() && (name != DefaultLink || kind != h.cfg.kind) {
		return false, nil
	}
	claims, err := h.cfg.Claims()
	if err != nil {
		return false, err
	}
	if who := claims.Of(p.addr); who != "" {
		return false, heldByInstance(p, name, who)
	}
	return true, nil
}

// removeLeft removes addresses that a dead instance left on a device. It removes the
// link, too, if that was made for them and nobody uses another address on it.
func (h *Host) removeLeft(conn *conn, index uint32, addrs []netip.Addr) error {
	name := conn.names[index]
	kind, err := conn.linkKind(index)
	if err != nil {
		return err
	}
	claims, err := h.cfg.Claims()
	if err != nil {
		return err
	}
	other := func(p address) bool {
		byKernel := p.addr.Is6() && p.addr.IsLinkLocalUnicast()
		return p.index == index && (!p.ours() || claims.Of(p.addr) != "") && !slices.Contains(addrs, p.addr) && !byKernel
	}
	if kind == h.cfg.kind && !slices.ContainsFunc(conn.present, other) {
		if err := conn.deleteLink(index); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("delete link %s, which a dead instance left: %w", name, explain(err))
		}
		delete(conn.names, index)
	} else if err := conn.remove(name, addrs); err != nil {
		return fmt.Errorf("take over the addresses that a dead instance left: %w", err)
	}
	conn.present = slices.DeleteFunc(conn.present, func(p address) bool { return p.index == index && slices.Contains(addrs, p.addr) })
	if h.cfg.Log != nil {
		h.cfg.Log("%v are moved from interface %s, where an earlier instance left them, to %s", addrs, name, h.link)
	}
	return nil
}

func heldByNode(p address, name string) error {
	return &iptables.HeldError{
		By: iptables.HeldByNode, Prefix: p.prefix(), Interface: name,
		What:   fmt.Sprintf("it is an address of this node itself, or the gateway of the network behind %s, which a cache must not change", name),
		Remedy: "listen on the address of a Service, or on an address that is not in use, such as 169.254.20.10",
	}
}

func heldByInstance(p address, name, who string) error {
	return &iptables.HeldError{
		By: iptables.HeldByInstance, Prefix: p.prefix(), Interface: name,
		What:   "another instance of Trackless is running and uses it there (" + who + ")",
		Remedy: "wait until that instance has stopped, or give this one the same `interface` (in node-cache mode -interfacename)",
	}
}

func heldByOther(p address, name string) error {
	e := &iptables.HeldError{
		By: iptables.HeldByOther, Prefix: p.prefix(), Interface: name,
		What: "that interface is another program's",
		Remedy: fmt.Sprintf("listen on another address, or set `interface none` if %s is meant to carry it; if it is not needed there, remove it with `ip address del %s dev %s`",
			name, p.prefix(), name),
	}
	if name == ipvsLink {
		e.By = iptables.HeldByIPVS
		e.What = "kube-proxy in IPVS mode keeps the addresses of all Services there, and IPVS answers at them"
		e.Remedy = "with kube-proxy in IPVS mode listen only on a link-local address (169.254.20.10), which kubelet gives to pods as clusterDNS; if kube-proxy no longer uses IPVS, remove its addresses with `kube-proxy --cleanup` or a restart of the node"
	}
	return e
}

// Why the kernel refuses an IPv6 address.
var (
	errIPv6Disabled = errors.New("IPv6 is disabled there")
	errNoIPv6       = errors.New("this kernel has no IPv6")
)

// explainAdd adds the reason and the remedy to the kernel's answer.
func explainAdd(device string, a netip.Addr, err error) error {
	switch {
	case a.Is6() && errors.Is(err, unix.EACCES): // addrconf_add_dev in net/ipv6/addrconf.c
		return fmt.Errorf("%w: %w (net.ipv6.conf.all.disable_ipv6 or net.ipv6.conf.%s.disable_ipv6 is 1): enable it with `sysctl -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0`, or remove the address from the configuration", err, errIPv6Disabled, device)
	case a.Is6() && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)):
		return fmt.Errorf("%w: %w (it may have been booted with ipv6.disable=1): remove the address from the configuration", err, errNoIPv6)
	}
	return explain(err)
}
