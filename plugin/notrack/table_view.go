package notrack

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/jsimonetti/rtnetlink/v2"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/nft"
)

const dnsPort = 53

// tableView tells which entries are DNS, and whose.
type tableView struct {
	listen    map[iptables.Endpoint]bool
	upstreams map[netip.AddrPort]bool
	pairs     []nft.FailoverPair
	ports     []uint16 // of all of these, and 53
	uplinks   []string // those that the Corefile names, else the default routes'
}

func newTableView(config *configuration, pairs []nft.FailoverPair) *tableView {
	v := &tableView{
		listen:    map[iptables.Endpoint]bool{},
		upstreams: map[netip.AddrPort]bool{},
		pairs:     pairs,
		ports:     []uint16{dnsPort},
		uplinks:   config.plan.Uplinks,
	}
	for _, e := range config.plan.Listen {
		v.listen[e] = true
		v.ports = append(v.ports, e.Port)
	}
	for _, ap := range forwardEndpoints(config) {
		v.upstreams[ap] = true
		v.ports = append(v.ports, ap.Port())
	}
	slices.Sort(v.ports)
	v.ports = slices.Compact(v.ports)
	return v
}

// count walks the table once for each port and protocol. The kernel leaves out
// what is not to it (since Linux 5.8). The second result is by listen address the
// number of UDP flows of this node and its pods of which a packet came within the
// window.
func (v *tableView) count(ctx context.Context, conn *conntrack.Conn, window time.Duration) (dnsEntries, map[netip.Addr]uint64, error) {
	origins, err := readOrigins(v.uplinks)
	if err != nil {
		return nil, nil, err
	}
	timeouts, err := ledger.ReadTimeouts("/proc")
	if err != nil {
		return nil, nil, err
	}
	c := tableCount{
		view: v, origins: origins, entries: dnsEntries{},
		bypass: map[netip.Addr]dnsEntries{}, servers: map[netip.Addr]bool{},
		timeouts: timeouts, window: window, fresh: map[netip.Addr]uint64{},
	}
	for _, port := range v.ports {
		for _, proto := range []conntrack.Protocol{conntrack.UDP, conntrack.TCP} {
			err := conn.Dump(conntrack.Filter{
				Protocols: []conntrack.Protocol{proto},
				DstPorts:  []conntrack.PortRange{{First: port, Last: port}},
			}, func(e *conntrack.Entry) error {
				c.add(e)
				return ctx.Err()
			})
			if err != nil {
				return nil, nil, err
			}
		}
	}
	return c.total(), c.fresh, nil
}

// tableCount is a count under way.
type tableCount struct {
	view    *tableView
	origins origins
	entries dnsEntries

	// bypass holds what each source asked of others than us, servers those
	// that answered.
	bypass  map[netip.Addr]dnsEntries
	servers map[netip.Addr]bool

	timeouts ledger.Timeouts
	window   time.Duration
	fresh    map[netip.Addr]uint64
}

// maxServers bounds what tableCount keeps of a table that somebody fills.
const maxServers = 4096

func (c *tableCount) add(e *conntrack.Entry) {
	o := &e.Original
	if o.DstPort == dnsPort && e.Status&conntrack.StatusSeenReply != 0 && len(c.servers) < maxServers {
		c.servers[e.Reply.Src] = true
	}
	_, failedOver := nft.FailoverListen(c.view.pairs, o.Zone, o.Destination())
	switch {
	case failedOver || c.view.listen[iptables.Endpoint{Addr: o.Dst, Port: o.DstPort, Proto: iptables.Proto(o.Proto)}]:
		c.entries[classOf(roleClient, o.Src, o.Proto)]++
		if !failedOver && c.isFresh(e) {
			c.fresh[o.Dst]++
		}
	case c.view.upstreams[o.Destination()] && c.origins.own[o.Src]:
		c.entries[classOf(roleUpstream, o.Src, o.Proto)]++
	case o.DstPort == dnsPort && c.origins.here(o.Src):
		if c.bypass[o.Src] == nil {
			c.bypass[o.Src] = dnsEntries{}
		}
		c.bypass[o.Src][classOf(roleBypass, o.Src, o.Proto)]++
	}
}

// isFresh reports whether a packet of this node or of its pods came over the flow
// within the window: the kernel gives it its full time again with each.
func (c *tableCount) isFresh(e *conntrack.Entry) bool {
	o := &e.Original
	if o.Proto != conntrack.UDP || o.Src == o.Dst || !c.origins.here(o.Src) {
		return false // of those to itself the node's are checks of ours
	}
	full := c.timeouts.UDP
	if e.Status&conntrack.StatusAssured != 0 {
		full = c.timeouts.UDPStream
	}
	// What is left is rounded down to whole seconds.
	since := full - e.Timeout
	return since >= 0 && since <= c.window
}

// total adds up. What a DNS server asks on its own account, as kube-dns does, is
// no bypass.
func (c *tableCount) total() dnsEntries {
	for src, entries := range c.bypass {
		if c.servers[src] {
			continue
		}
		for class, n := range entries {
			c.entries[class] += n
		}
	}
	return c.entries
}

// origins tells whether an address is of this node or of one of its pods.
type origins struct {
	own    map[netip.Addr]bool
	routes []route // the longest prefix first
	known  map[netip.Addr]bool
}

// route is a route of the main table; local if it leads, without a gateway, to
// something behind a device of this node that is no uplink: to its pods.
type route struct {
	to    netip.Prefix
	local bool
}

// here reports whether the address is of this node or of one of its pods. Beyond
// as many different addresses as no node has, it says no.
func (s *origins) here(a netip.Addr) bool {
	if s.own[a] {
		return true
	}
	local, known := s.known[a]
	if known || len(s.known) >= maxServers {
		return local
	}
	if i := slices.IndexFunc(s.routes, func(r route) bool { return r.to.Contains(a) }); i >= 0 {
		local = s.routes[i].local
	}
	s.known[a] = local
	return local
}

// readOrigins reads addresses and routes. With no uplinks given they are the
// devices with a default route.
func readOrigins(named []string) (origins, error) {
	s := origins{own: map[netip.Addr]bool{}, known: map[netip.Addr]bool{}}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return s, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			s.own[p.Addr()] = true
		}
	}
	if len(named) == 0 {
		if named, err = uplinks(); err != nil {
			return s, err
		}
	}
	links, err := listLinks()
	if err != nil {
		return s, err
	}
	isUplink := map[uint32]bool{}
	for _, l := range links {
		isUplink[l.Index] = slices.Contains(named, l.Attributes.Name)
	}
	routes, err := listRoutes()
	if err != nil {
		return s, err
	}
	for _, r := range routes {
		dst, ok := netip.AddrFromSlice(r.Attributes.Dst)
		if !ok || r.Type != unix.RTN_UNICAST || r.Table != unix.RT_TABLE_MAIN {
			continue
		}
		s.routes = append(s.routes, route{
			to:    netip.PrefixFrom(dst.Unmap(), int(r.DstLength)),
			local: r.Attributes.Gateway == nil && len(r.Attributes.Multipath) == 0 && !isUplink[r.Attributes.OutIface],
		})
	}
	slices.SortFunc(s.routes, func(a, b route) int { return cmp.Compare(b.to.Bits(), a.to.Bits()) })
	return s, nil
}

// listRoutes returns the routes of this network namespace.
func listRoutes() ([]rtnetlink.RouteMessage, error) {
	conn, err := rtnetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	defer conn.Close()
	routes, err := conn.Route.List()
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return routes, nil
}
