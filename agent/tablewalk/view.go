package tablewalk

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/jsimonetti/rtnetlink/v2"

	"github.com/trackless-dns/trackless/agent/devices"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/failover"
	"github.com/trackless-dns/trackless/iptables/route"
)

const dnsPort = 53

// View tells which entries are DNS, and who asks whom.
type View struct {
	listen    map[iptables.Endpoint]bool
	upstreams map[netip.AddrPort]bool
	pairs     []failover.Pair
	ports     []uint16 // of all of these, and 53
	uplinks   []string // from the Corefile; empty: the devices of the default routes
}

// NewView returns a view for a plan, the upstreams of its misses, and the pairs of the
// failover table.
func NewView(plan iptables.Plan, upstreams []netip.AddrPort, pairs []failover.Pair) *View {
	v := &View{
		listen:    map[iptables.Endpoint]bool{},
		upstreams: map[netip.AddrPort]bool{},
		pairs:     pairs,
		ports:     []uint16{dnsPort},
		uplinks:   plan.Uplinks,
	}
	for _, e := range plan.Listen {
		v.listen[e] = true
		v.ports = append(v.ports, e.Port)
	}
	for _, ap := range upstreams {
		v.upstreams[ap] = true
		v.ports = append(v.ports, ap.Port())
	}
	slices.Sort(v.ports)
	v.ports = slices.Compact(v.ports)
	return v
}

// count walks the table. The second result is by listen address the number of UDP flows
// of this node and its pods of which a packet came within the window.
func (v *View) count(ctx context.Context, conn *conntrack.Conn, limits sysctl.Limits, window time.Duration) (Entries, map[netip.Addr]uint64, error) {
	origins, err := readOrigins(v.uplinks)
	if err != nil {
		return nil, nil, err
	}
	timeouts, err := ledger.ReadTimeouts("/proc")
	if err != nil {
		return nil, nil, err
	}
	c := tableCount{
		view: v, origins: origins, entries: Entries{},
		bypass: map[netip.Addr]Entries{}, servers: map[netip.Addr]bool{},
		timeouts: timeouts, window: window, fresh: map[netip.Addr]uint64{},
	}
	for _, filter := range v.filters(limits) {
		err := conn.Dump(filter, func(e *conntrack.Entry) error {
			c.add(e)
			return ctx.Err()
		})
		if err != nil {
			return nil, nil, err
		}
	}
	return c.total(), c.fresh, nil
}

// bucketsPerEntry is how many empty buckets the kernel passes in the time that it takes to
// send an entry, and we to read it.
const bucketsPerEntry = 20

// filters returns those of the dumps that together have all DNS. There is one for each port
// and protocol, of which the kernel sends nothing else (since Linux 5.8), or, where there
// are few entries for so many buckets, a single one for all of the table.
func (v *View) filters(limits sysctl.Limits) []conntrack.Filter {
	var filters []conntrack.Filter
	for _, port := range v.ports {
		for _, proto := range []conntrack.Protocol{conntrack.UDP, conntrack.TCP} {
			filters = append(filters, conntrack.Filter{
				Protocols: []conntrack.Protocol{proto},
				DstPorts:  []conntrack.PortRange{{First: port, Last: port}},
			})
		}
	}
	if limits.Count*bucketsPerEntry < limits.Buckets*uint64(len(filters)-1) {
		return []conntrack.Filter{{}}
	}
	return filters
}

// tableCount counts the entries of one walk.
type tableCount struct {
	view    *View
	origins origins
	entries Entries

	// bypass has the entries of each source that asked other servers, servers the
	// addresses that answered.
	bypass  map[netip.Addr]Entries
	servers map[netip.Addr]bool

	timeouts ledger.Timeouts
	window   time.Duration
	fresh    map[netip.Addr]uint64
}

// maxServers bounds the memory of tableCount, should somebody fill the table.
const maxServers = 4096

func (c *tableCount) add(e *conntrack.Entry) {
	o := &e.Original
	if o.Proto != conntrack.UDP && o.Proto != conntrack.TCP {
		return
	}
	if o.DstPort == dnsPort && e.Status&conntrack.StatusSeenReply != 0 && len(c.servers) < maxServers {
		c.servers[e.Reply.Src] = true
	}
	_, failedOver := failover.ListenOf(c.view.pairs, o.Zone, o.Destination())
	switch {
	case failedOver || c.view.listen[iptables.Endpoint{Addr: o.Dst, Port: o.DstPort, Proto: iptables.Proto(o.Proto)}]:
		c.entries[classOf(Client, o.Src, o.Proto)]++
		if !failedOver && c.isFresh(e) {
			c.fresh[o.Dst]++
		}
	case c.view.upstreams[o.Destination()] && c.origins.own[o.Src]:
		c.entries[classOf(Upstream, o.Src, o.Proto)]++
	case o.DstPort == dnsPort && c.origins.here(o.Src):
		if c.bypass[o.Src] == nil {
			c.bypass[o.Src] = Entries{}
		}
		c.bypass[o.Src][classOf(Bypass, o.Src, o.Proto)]++
	}
}

// isFresh reports whether this node or one of its pods sent a packet of the flow within
// the window. With each packet the kernel sets the timeout of the entry anew.
func (c *tableCount) isFresh(e *conntrack.Entry) bool {
	o := &e.Original
	if o.Proto != conntrack.UDP || o.Src == o.Dst || !c.origins.here(o.Src) {
		return false // a flow of the node to itself is mostly a check of ours
	}
	full := c.timeouts.UDP
	if e.Status&conntrack.StatusAssured != 0 {
		full = c.timeouts.UDPStream
	}
	// The kernel rounds the remaining time down to whole seconds.
	since := full - e.Timeout
	return since >= 0 && since <= c.window
}

// total adds up. Queries of a DNS server, such as kube-dns, are no bypass.
func (c *tableCount) total() Entries {
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
	routes []destination // the longest prefix first
	known  map[netip.Addr]bool
}

// destination is where a route of the main table leads. It is local if it leads to pods of
// this node: without a gateway, over a device of a kind that pods have, which is no uplink.
type destination struct {
	to    netip.Prefix
	local bool
}

// here reports whether the address is of this node or of one of its pods. After maxServers
// different addresses it reports false for each new one.
func (s *origins) here(a netip.Addr) bool {
	if s.own[a] {
		return true
	}
	local, known := s.known[a]
	if known || len(s.known) >= maxServers {
		return local
	}
	if i := slices.IndexFunc(s.routes, func(d destination) bool { return d.to.Contains(a) }); i >= 0 {
		local = s.routes[i].local
	}
	s.known[a] = local
	return local
}

// readOrigins reads addresses and routes. Without names of uplinks it takes the devices of
// the default routes.
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
		if named, err = devices.Uplinks(); err != nil {
			return s, err
		}
	}
	links, err := route.Links()
	if err != nil {
		return s, err
	}
	routes, err := route.List(0)
	if err != nil {
		return s, err
	}
	s.routes = destinations(routes, podDevices(links, named))
	return s, nil
}

// podDevices returns the indexes of the devices behind which pods may be.
func podDevices(links []rtnetlink.LinkMessage, uplinks []string) map[uint32]bool {
	out := map[uint32]bool{}
	for _, l := range links {
		out[l.Index] = devices.HasPods(l) && !slices.Contains(uplinks, l.Attributes.Name)
	}
	return out
}

// destinations returns the destinations of the main table, the longest prefix first.
func destinations(routes []route.Route, podDevices map[uint32]bool) (out []destination) {
	for _, r := range routes {
		if r.Table != route.Main {
			continue
		}
		elsewhere := func(h route.Hop) bool { return !podDevices[h.Device] }
		out = append(out, destination{to: r.To, local: r.Direct() && !slices.ContainsFunc(r.Hops, elsewhere)})
	}
	slices.SortStableFunc(out, func(a, b destination) int { return cmp.Compare(b.to.Bits(), a.to.Bits()) })
	return out
}
