package hostaddr

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The source of a flow to a local address is that address itself, unless the local
// route to it prefers another source. Then the node's own clients would have a source
// that comes and goes with us, and would lose the answers that they wait for. So each
// listen address gets a local route of ours that prefers the node's usual source: the
// source that these flows have without us. The route is added before the address and
// deleted after it.
//
// In IPv4 our route is used, since it is added first. The kernel's route stays behind
// it: if the preferred source is removed, our route is removed with it. In IPv6 our
// route cannot be preferred to the kernel's, so the kernel's is deleted.
//
// An IPv6 socket keeps its route until something changes at or above that route
// (ip6_dst_check). A new local route does not affect a socket that uses the default
// route. The route to the prefix of the address does, which the kernel adds to the
// main table.

// protoRoute marks our routes (rtm_protocol). No list of known protocols has it
// (/etc/iproute2/rt_protos).
const protoRoute = 0x54

const (
	// kernelRouteWait bounds the wait for the kernel's routes to IPv6 addresses.
	// A worker adds them some time after the addresses (addrconf_dad_work in
	// net/ipv6/addrconf.c).
	kernelRouteWait = 250 * time.Millisecond
	kernelRoutePoll = time.Millisecond

	// routePause is the time between two changes of the route to an address by
	// PreferSource. The kernel announces each change, which leads to the next
	// PreferSource. Without the pause this would not end if another program keeps
	// undoing the change.
	routePause = 10 * time.Second
)

// PreferSource gives the node's own flows to the addresses that we hold the source that
// they have without us, as Ensure does. It changes nothing where the source is right,
// or if the node has no other address.
func (h *Host) PreferSource() error {
	if h.device == "" || len(h.held) == 0 {
		return nil
	}
	conn, err := h.open()
	if err != nil {
		return err
	}
	defer conn.close()
	index := indexOf(conn.names, h.device)
	var errs []error
	for _, a := range h.held {
		there := slices.ContainsFunc(conn.present, func(p address) bool { return p.addr == a && p.index == index })
		if !there || time.Since(h.rerouted[a]) < routePause {
			continue
		}
		changed, err := conn.preferSource(index, a, h.held)
		if changed {
			h.rerouted[a] = time.Now()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// preferSource gives the node's flows to a its usual source, which must not be a
// listen address. It reports whether it changed anything.
func (c *conn) preferSource(index uint32, a netip.Addr, listen []netip.Addr) (changed bool, err error) {
	want, ok := c.usualSource(a)
	if !ok || slices.Contains(listen, want) {
		return false, nil
	}
	if source, local := c.source(a); local && source == want {
		return false, nil
	}
	err = c.addRoute(index, a, want)
	if err == nil && a.Is6() {
		_, err = c.deleteKernelRoute(index, a)
	}
	if err != nil {
		return true, fmt.Errorf("prefer %s as the source of flows to %s: %w", want, a, explain(err))
	}
	return true, nil
}

// replaceKernelRoutes waits for the kernel's routes to IPv6 addresses that were just
// added, and deletes them, so that ours are used. If they take too long the next
// PreferSource deletes them.
func (c *conn) replaceKernelRoutes(index uint32, added, listen []netip.Addr) {
	deadline := time.Now().Add(kernelRouteWait)
	for _, a := range added {
		want, ok := c.usualSource(a)
		if a.Is4() || !ok || slices.Contains(listen, want) {
			continue
		}
		for {
			deleted, err := c.deleteKernelRoute(index, a)
			if deleted || err != nil || time.Now().After(deadline) {
				break
			}
			time.Sleep(kernelRoutePoll)
		}
	}
}

// usualSource returns the node's source address towards the rest of the world, in the
// family of a. It asks for the route to a documentation address (RFC 5737, RFC 3849);
// nothing is sent.
func (c *conn) usualSource(a netip.Addr) (netip.Addr, bool) {
	dst := netip.AddrFrom4([4]byte{198, 51, 100, 1})
	if a.Is6() {
		dst = netip.MustParseAddr("2001:db8:ffff::1")
	}
	source, _ := c.source(dst)
	return source, source.IsValid() && !source.IsLoopback()
}

// source asks the kernel which source a flow of this node to dst has, and whether dst
// is on this node. The source is invalid if dst is unreachable.
func (c *conn) source(dst netip.Addr) (source netip.Addr, local bool) {
	routes, err := c.rt.Route.Get(&rtnetlink.RouteMessage{
		Family: routeFamily(dst), DstLength: uint8(dst.BitLen()),
		Attributes: rtnetlink.RouteAttributes{Dst: dst.AsSlice()},
	})
	if err != nil || len(routes) == 0 {
		return netip.Addr{}, false
	}
	source, _ = netip.AddrFromSlice(routes[0].Attributes.Src)
	return source, routes[0].Type == unix.RTN_LOCAL
}

// routed lists the addresses to which there are local routes of ours, as if they were
// on the device. A route without its address is left if we were killed and the address
// was removed later.
func (c *conn) routed() ([]address, error) {
	routes, err := c.rt.Route.List()
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var out []address
	for _, r := range routes {
		a, ok := netip.AddrFromSlice(r.Attributes.Dst)
		if ok && r.Protocol == protoRoute && r.Type == unix.RTN_LOCAL {
			out = append(out, address{index: r.Attributes.OutIface, addr: a, bits: r.DstLength, proto: protoTrackless})
		}
	}
	return out, nil
}

// addRoute adds our local route to a. It replaces an earlier one.
func (c *conn) addRoute(index uint32, a, source netip.Addr) error {
	flags := netlink.Create | netlink.Replace
	if a.Is4() {
		// Replace would replace the first route, which may be the kernel's.
		// Without a flag the new route comes first (fib_table_insert).
		if err := c.deleteRoutes(index, a); err != nil {
			return err
		}
		flags = netlink.Create
	}
	m := localRoute(index, a, protoRoute)
	m.Attributes.Src = source.AsSlice()
	return c.changeRoute(unix.RTM_NEWROUTE, m, flags)
}

// deleteRoutes removes our routes to a. It is no error if there are none.
func (c *conn) deleteRoutes(index uint32, a netip.Addr) error {
	for {
		err := c.changeRoute(unix.RTM_DELROUTE, localRoute(index, a, protoRoute), 0)
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("remove the local route to %s: %w", a, explain(err))
		}
	}
}

// deleteKernelRoute removes the kernel's route to an address, and reports whether
// there was one.
func (c *conn) deleteKernelRoute(index uint32, a netip.Addr) (deleted bool, err error) {
	err = c.changeRoute(unix.RTM_DELROUTE, localRoute(index, a, unix.RTPROT_KERNEL), 0)
	if errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	return err == nil, err
}

func (c *conn) changeRoute(typ uint16, m *rtnetlink.RouteMessage, flags netlink.HeaderFlags) error {
	_, err := c.rt.Execute(m, typ, netlink.Request|netlink.Acknowledge|flags)
	return err
}

// localRoute is the route that makes an address local.
func localRoute(index uint32, a netip.Addr, protocol uint8) *rtnetlink.RouteMessage {
	return &rtnetlink.RouteMessage{
		Family: routeFamily(a), DstLength: uint8(a.BitLen()), Table: unix.RT_TABLE_LOCAL,
		Protocol: protocol, Scope: unix.RT_SCOPE_HOST, Type: unix.RTN_LOCAL,
		Attributes: rtnetlink.RouteAttributes{Dst: a.AsSlice(), OutIface: index, Table: unix.RT_TABLE_LOCAL},
	}
}

func routeFamily(a netip.Addr) uint8 {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}
