// Package devices tells the devices of this node apart: uplinks, by which the rest
// of the world comes in, and those behind which pods are.
package devices

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/jsimonetti/rtnetlink/v2"

	"github.com/trackless-dns/trackless/internal/logger"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/route"
)

// BridgedUplink returns the name of a bridge that carries a default route, or
// none. A Corefile whose notrack block does not say `sources` or `uplinks`
// cannot start where there is one.
func BridgedUplink() (string, error) {
	names, err := Uplinks()
	if err != nil {
		return "", err
	}
	return bridgedUplink(names)
}

// UplinksOf returns the devices from which a plan serves nobody but its sources.
func UplinksOf(plan iptables.Plan) ([]string, error) {
	switch {
	case plan.AnySource:
		return nil, nil
	case len(plan.Uplinks) > 0:
		return plan.Uplinks, nil
	}
	return Uplinks()
}

// A Follower returns the uplinks as they are now. A start with a bridge among them is
// refused; one that becomes an uplink while we run is told of, once.
type Follower struct {
	Log logger.Logger

	bridge string // that was told of
}

// Uplinks implements [reconcile.Kernel.Uplinks]. It is called by one goroutine at a
// time.
func (f *Follower) Uplinks(plan iptables.Plan) ([]string, error) {
	names, err := Uplinks()
	if err != nil || len(plan.Sources) > 0 {
		return names, err
	}
	bridge, err := bridgedUplink(names)
	if err != nil {
		return nil, err
	}
	if bridge != "" && bridge != f.bridge {
		f.Log.Warningf("the bridge %s has become an uplink: whoever comes in over it is no longer served here, pods as well as the rest of the world; say who is served with `sources CIDR...`", bridge)
	}
	f.bridge = bridge
	return names, nil
}

// Uplinks returns the devices by which routes lead to the rest of the world.
func Uplinks() ([]string, error) {
	routes, err := route.List(0)
	if err != nil {
		return nil, err
	}
	links, err := route.Links()
	if err != nil {
		return nil, err
	}
	return UplinksAmong(links, routes), nil
}

// UplinksAmong returns the names of the links by which the routes lead to the rest of the
// world.
func UplinksAmong(links []rtnetlink.LinkMessage, routes []route.Route) []string {
	indexes := route.Uplinks(routes)
	var out []string
	for _, l := range links {
		if slices.Contains(indexes, l.Index) {
			out = append(out, l.Attributes.Name)
		}
	}
	slices.Sort(out)
	return out
}

// bridgedUplink returns an uplink that is a bridge: pods may sit behind it as
// well as the rest of the world, and only their addresses tell them apart.
func bridgedUplink(names []string) (string, error) {
	links, err := route.Links()
	if err != nil {
		return "", err
	}
	for _, l := range links {
		a := l.Attributes
		if a.Info != nil && a.Info.Kind == "bridge" && slices.Contains(names, a.Name) {
			return a.Name, nil
		}
	}
	return "", nil
}

// linkMasters returns every link with the one that it is a port of, empty for
// none.
func linkMasters() (map[string]string, error) {
	links, err := route.Links()
	if err != nil {
		return nil, err
	}
	names, out := map[uint32]string{}, map[string]string{}
	for _, l := range links {
		names[l.Index] = l.Attributes.Name
	}
	for _, l := range links {
		out[l.Attributes.Name] = ""
		if master := l.Attributes.Master; master != nil {
			out[l.Attributes.Name] = names[*master]
		}
	}
	return out, nil
}

// podKinds are the kinds of devices (rtnl_link_ops) behind which pods of this
// node are; what tunnels bring comes from elsewhere.
var podKinds = []string{"veth", "bridge", "netkit", "macvlan", "ipvlan", "tun", "openvswitch", "vrf"}

// HasPods reports whether a device is of a kind behind which pods are.
func HasPods(l rtnetlink.LinkMessage) bool {
	return l.Attributes.Info != nil && slices.Contains(podKinds, l.Attributes.Info.Kind)
}

// ClientsByDevice returns an address for each network to which a route leads, by
// the index of the device.
func ClientsByDevice() (map[uint32][]netip.Addr, error) {
	routes, err := route.List(0)
	if err != nil {
		return nil, err
	}
	out := map[uint32][]netip.Addr{}
	for _, r := range routes {
		if r.To.Bits() == 0 || r.To.Addr().IsLinkLocalUnicast() || r.To.Addr().IsMulticast() {
			continue
		}
		client := Inside(r.To)
		for _, h := range r.Hops {
			if !slices.Contains(out[h.Device], client) {
				out[h.Device] = append(out[h.Device], client)
			}
		}
	}
	for i := range out {
		slices.SortFunc(out[i], netip.Addr.Compare)
	}
	return out, nil
}

// Inside is an address of a network that is likely nobody special's: the third,
// where there is one.
func Inside(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr()
	for range 2 {
		if next := a.Next(); p.Contains(next) {
			a = next
		}
	}
	return a
}

// Check refuses a plan whose uplinks would let in whom it must not serve.
func Check(plan iptables.Plan, log logger.Logger) error {
	return errors.Join(checkNames(plan, log), checkUplinks(plan))
}

// checkNames refuses uplinks by which no packet arrives: what comes in over the
// port of a bridge or bond arrives by the latter, and would be served.
func checkNames(plan iptables.Plan, log logger.Logger) error {
	masters, err := linkMasters()
	if err != nil {
		return err
	}
	for _, name := range plan.Uplinks {
		master, there := masters[name]
		switch {
		case !there:
			log.Warningf("uplinks %s: there is no such interface now; whoever comes in over another one is served", name)
		case master != "":
			return fmt.Errorf("uplinks %s: it is a port of %s, by which its packets arrive: name %s instead", name, master, master)
		}
	}
	return nil
}

// checkUplinks refuses a bridge that is an uplink unless sources tell pods from
// the rest of the world behind it.
func checkUplinks(plan iptables.Plan) error {
	if len(plan.Sources) > 0 {
		return nil
	}
	names, err := UplinksOf(plan)
	if err != nil {
		return err
	}
	bridge, err := bridgedUplink(names)
	if err != nil {
		return err
	}
	if bridge != "" {
		return fmt.Errorf("the uplink %s is a bridge, and pods may be behind it as well as the rest of the world: say who is served with `sources CIDR...`", bridge)
	}
	return nil
}
