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

// settle sees to it that nobody else holds the addresses: it fails if an interface
// of somebody else does, and takes away what an instance left that is gone.
func (h *Host) settle(conn *conn, addrs []netip.Addr) error {
	left := map[uint32][]netip.Addr{} // by device
	for _, p := range conn.present {
		if !slices.Contains(addrs, p.addr) || onLoopbackAlways(p.addr) {
			continue
		}
		name := conn.names[p.index]
		if own, err := h.nodesOwn(conn, p); err != nil {
			return err
		} else if own {
			return held(p, name, fmt.Sprintf("it is an address of this node itself, or the gateway of what is behind %s, and nothing may happen to it when a cache starts, stops or dies", name),
				"listen on the address of a Service, or on one that nobody else has, such as 169.254.20.10")
		}
		if h.link == "" || name == h.link || name == h.device || name == loopback && p.ours() {
			continue
		}
		gone, err := h.leftBehind(conn, p)
		if err != nil {
			return err
		}
		if !gone {
			return foreign(p, name)
		}
		left[p.index] = append(left[p.index], p.addr)
	}
	for index, addrs := range left {
		if err := h.takeAway(conn, index, addrs); err != nil {
			return err
		}
	}
	return nil
}

// nodesOwn reports whether an address is one by which this node is known, or a
// gateway: the source of what it sends, or an address with a network behind it.
// What a link made to carry listen addresses holds is neither.
func (h *Host) nodesOwn(conn *conn, p address) (bool, error) {
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

// nodeKinds are the kinds of devices on which even an address without a network is
// of the node: hardware, which has none, what leads to a pod, and tunnels.
var nodeKinds = []string{"", "veth", "netkit", "bond", "team", "vlan", "ipip", "sit", "ip6tnl", "gre", "ip6gre", "vxlan", "geneve", "wireguard"}

// leftBehind reports whether an instance that is gone left the address: one with
// another name for its link, or Kubernetes' node-cache. It fails while somebody
// asks for it.
func (h *Host) leftBehind(conn *conn, p address) (bool, error) {
	name := conn.names[p.index]
	kind, err := conn.linkKind(p.index)
	if err != nil {
		return false, err
	}
	// Linux before 5.18 keeps no mark, and node-cache makes none.
	if h.cfg.Claims == nil || !p.ours() && (name != DefaultLink || kind != h.cfg.kind) {
		return false, nil
	}
	claims, err := h.cfg.Claims()
	if err != nil {
		return false, err
	}
	if who := claims.Of(p.addr); who != "" {
		return false, held(p, name, "another instance of Trackless runs that has it there ("+who+")",
			"wait until that one has stopped, or give this one the same `interface` (in node-cache mode -interfacename)")
	}
	return true, nil
}

// takeAway removes addresses from a device that an instance left, and with the last
// of them the link if it was made to carry them. Somebody may ask for others that it
// carries.
func (h *Host) takeAway(conn *conn, index uint32, addrs []netip.Addr) error {
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
		kernels := p.addr.Is6() && p.addr.IsLinkLocalUnicast()
		return p.index == index && (!p.ours() || claims.Of(p.addr) != "") && !slices.Contains(addrs, p.addr) && !kernels
	}
	if kind == h.cfg.kind && !slices.ContainsFunc(conn.present, other) {
		if err := conn.deleteLink(index); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("delete link %s, which an instance left that is gone: %w", name, explain(err))
		}
		delete(conn.names, index)
	} else if err := conn.remove(name, addrs); err != nil {
		return fmt.Errorf("take over what an instance left that is gone: %w", err)
	}
	conn.present = slices.DeleteFunc(conn.present, func(p address) bool { return p.index == index && slices.Contains(addrs, p.addr) })
	if h.cfg.Log != nil {
		h.cfg.Log("%v went from interface %s, where an earlier instance had left them, to %s", addrs, name, h.link)
	}
	return nil
}

func held(p address, name, what, remedy string) error {
	return &iptables.HeldError{Prefix: p.prefix(), Interface: name, What: what, Remedy: remedy}
}

// foreign says who holds an address, and what can be done about it.
func foreign(p address, name string) error {
	if name == ipvsLink {
		return held(p, name, "there kube-proxy in IPVS mode keeps the addresses of all Services, and IPVS answers at them",
			"with kube-proxy in IPVS mode listen on a link-local address alone (169.254.20.10), which kubelet gives to pods as clusterDNS; if kube-proxy no longer uses IPVS it is a leftover, and `kube-proxy --cleanup` or a restart of the node takes it away")
	}
	return held(p, name, "that interface is somebody else's",
		fmt.Sprintf("listen on another address, or say `interface none` if %s is meant to carry it; if nobody needs it there, remove it with `ip address del %s dev %s`", name, p.prefix(), name))
}

// explainAdd names what keeps an address from being added.
func explainAdd(device string, a netip.Addr, err error) error {
	switch {
	case a.Is6() && errors.Is(err, unix.EACCES): // addrconf_add_dev in net/ipv6/addrconf.c
		return fmt.Errorf("%w: IPv6 is disabled there (net.ipv6.conf.all.disable_ipv6, or that of %s, is 1): enable it with `sysctl -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0`, or take the address out of the configuration", err, device)
	case a.Is6() && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)):
		return fmt.Errorf("%w: this kernel has no IPv6 (as when it was booted with ipv6.disable=1): take the address out of the configuration", err)
	}
	return explain(err)
}
