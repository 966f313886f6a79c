package cut

import "github.com/trackless-dns/trackless/plugin/cache/wire"

// OnWalk reports whether a name is one that a client asks for on its way along its search path: an
// external name, of two labels or more, below a domain of the path in the zone of a cluster. Such a
// domain is the zone, svc.ZONE, or a namespace below that. The name of an external name of two labels
// below svc.ZONE is that of a Service, too, and does not count. Names are in wire format and lower case.
func OnWalk(name, zone []byte) bool {
	if len(name) <= len(zone) || !wire.InZone(name, zone) || hasUnderscore(name) {
		return false
	}
	labels := wire.Labels(name) - wire.Labels(zone)
	child := wire.ChildOf(name, zone)
	switch string(child[1 : 1+child[0]]) {
	case "svc":
		return labels >= 4
	case "pod", "dns":
		return false
	}
	return labels >= 2
}
