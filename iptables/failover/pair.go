package failover

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Zone is the conntrack zone of rewritten queries, in their original direction;
// responses are in the default zone. It separates them from flows of the same client
// and port directly to the Service. Without it a response could belong to either flow.
// Other listen addresses of the same Service have the zones after it.
const Zone = 53

// dnsPort is the port of pairs that name none.
const dnsPort = 53

// Pair says where queries to a listen address go while nobody untracks them, over UDP
// and TCP.
type Pair struct {
	// Listen is an address that no Service owns, of either family.
	Listen netip.Addr

	// Service is the ClusterIP of a Service with the same ports, of the same
	// family. kube-proxy chooses the endpoint.
	Service netip.Addr

	// Ports are the ports on both addresses; none means 53.
	Ports []uint16
}

// Validate returns an error for the first field that cannot be in a rule.
func (p Pair) Validate() error {
	for _, a := range []netip.Addr{p.Listen, p.Service} {
		switch {
		case !a.IsValid():
			return fmt.Errorf("failover from %s to %s: not an IP address", p.Listen, p.Service)
		case a.Is4In6():
			return fmt.Errorf("failover from %s to %s: write the IPv4 address %s", p.Listen, p.Service, a.Unmap())
		case a.Zone() != "", a.IsUnspecified(), a.IsMulticast():
			return fmt.Errorf("failover from %s to %s: %s is not an address of a single node or Service", p.Listen, p.Service, a)
		}
	}
	switch {
	case p.Listen.Is4() != p.Service.Is4():
		return fmt.Errorf("failover from %s to %s: one is IPv4 and the other IPv6; name a Service address of the same family", p.Listen, p.Service)
	case p.Listen == p.Service:
		return fmt.Errorf("failover from %s to itself: a Service address needs no failover, kube-proxy serves it", p.Listen)
	case slices.Contains(p.Ports, 0):
		return fmt.Errorf("failover from %s to %s: port 0 carries no queries", p.Listen, p.Service)
	}
	return nil
}

// ListenOf returns the listen address that the client of a tracked flow asked, from
// the destination of its original tuple and its zone of the original direction. In
// conntrack such a query has the address of the Service, in a zone of its own; the
// source is the client's. ok is false for all other flows, also for those directly to
// the Service.
func ListenOf(pairs []Pair, zone uint16, dst netip.AddrPort) (listen netip.AddrPort, ok bool) {
	pairs, err := normalizeFailover(pairs)
	if err != nil {
		return netip.AddrPort{}, false
	}
	for i, p := range pairs {
		if p.Service == dst.Addr() && failoverZone(pairs, i) == zone && slices.Contains(p.Ports, dst.Port()) {
			return netip.AddrPortFrom(p.Listen, dst.Port()), true
		}
	}
	return netip.AddrPort{}, false
}

// failoverZone is the zone of the i-th of normalized pairs. Two pairs with the same
// Service have different zones, since a response shows only Service and zone.
func failoverZone(pairs []Pair, i int) uint16 {
	zone := uint16(Zone)
	for _, p := range pairs[:i] {
		if p.Service == pairs[i].Service {
			zone++
		}
	}
	return zone
}

// normalizeFailover validates the pairs and returns them sorted, each pair of
// addresses once, with its ports sorted.
func normalizeFailover(pairs []Pair) ([]Pair, error) {
	type endpoint struct {
		listen netip.Addr
		port   uint16
	}
	service := map[endpoint]netip.Addr{}
	services := map[netip.Addr]bool{}
	var out []Pair
	for _, p := range pairs {
		if err := p.Validate(); err != nil {
			return nil, err
		}
		services[p.Service] = true
		ports := slices.Clone(p.Ports)
		if len(ports) == 0 {
			ports = []uint16{dnsPort}
		}
		for _, port := range ports {
			e := endpoint{p.Listen, port}
			if other, taken := service[e]; taken && other != p.Service {
				return nil, fmt.Errorf("failover from %s port %d to both %s and %s: name one with `failover ADDRESS`", p.Listen, port, other, p.Service)
			}
			service[e] = p.Service
		}
		same := slices.IndexFunc(out, func(o Pair) bool { return o.Listen == p.Listen && o.Service == p.Service })
		if same < 0 {
			out = append(out, Pair{Listen: p.Listen, Service: p.Service, Ports: ports})
		} else {
			out[same].Ports = append(out[same].Ports, ports...)
		}
	}
	for i := range out {
		slices.Sort(out[i].Ports)
		out[i].Ports = slices.Compact(out[i].Ports)
		if services[out[i].Listen] {
			return nil, fmt.Errorf("failover from %s: another pair has it as its Service address", out[i].Listen)
		}
	}
	slices.SortFunc(out, func(a, b Pair) int {
		return cmp.Or(a.Listen.Compare(b.Listen), a.Service.Compare(b.Service))
	})
	return out, nil
}
