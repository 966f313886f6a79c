package route

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
)

// An uplink leads to the rest of the world. Most uplinks have a default route. Others
// have its two halves, or all public prefixes, or the full table of the Internet. So a
// device is an uplink if its routes together cover more of the public address space than
// any cluster or site has: more than one /8 of IPv4, or more than one /16 of IPv6.
const (
	uplinkBits4 = 8
	uplinkBits6 = 16
)

// notPublic are the prefixes that are not public address space: private, link-local,
// multicast and reserved ones (RFC 6890).
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/3"),
	netip.MustParsePrefix("fc00::/6"), // fc00::/7, fe80::/10, ff00::/8
}

// Uplinks returns the indexes of the devices whose routes, in all tables, lead to the
// rest of the world, sorted. lo is no uplink: its packets come from this node.
func Uplinks(routes []Route) []uint32 {
	type deviceFamily struct {
		device uint32
		ipv4   bool
	}
	public := map[deviceFamily][]netip.Prefix{}
	for _, r := range routes {
		to := r.To.Masked()
		if isPrivate(to) {
			continue
		}
		for _, h := range r.Hops {
			d := deviceFamily{h.Device, to.Addr().Is4()}
			public[d] = append(public[d], to)
		}
	}
	var out []uint32
	for d, prefixes := range public {
		limit := addressesIn(128 - uplinkBits6)
		if d.ipv4 {
			limit = addressesIn(32 - uplinkBits4)
		}
		if d.device != loopbackIndex && size(prefixes) > limit {
			out = append(out, d.device)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// loopbackIndex is the index of lo in every network namespace (LOOPBACK_IFINDEX).
const loopbackIndex = 1

func isPrivate(p netip.Prefix) bool {
	return slices.ContainsFunc(notPublic, func(n netip.Prefix) bool {
		return n.Bits() <= p.Bits() && n.Contains(p.Addr())
	})
}

// size returns the number of addresses in the prefixes, each counted once.
func size(prefixes []netip.Prefix) (total float64) {
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var last netip.Prefix
	for _, p := range prefixes {
		if last.IsValid() && last.Contains(p.Addr()) {
			continue // inside the last prefix
		}
		total += addressesIn(p.Addr().BitLen() - p.Bits())
		last = p
	}
	return total
}

func addressesIn(bits int) float64 { return math.Ldexp(1, bits) }
