package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/jsimonetti/rtnetlink/v2/driver"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab/internal/privilege"
)

// linkEnd is one end of a veth.
type linkEnd struct {
	ns    *Namespace
	name  string
	index uint32
	mac   net.HardwareAddr
}

// connect makes a veth from the namespace to another one and brings both ends
// up.
func (ns *Namespace) connect(name string, peer *Namespace, peerName string) (near, far linkEnd, err error) {
	err = ns.routing(func(conn *rtnetlink.Conn) error {
		return conn.Link.New(&rtnetlink.LinkMessage{
			Attributes: &rtnetlink.LinkAttributes{
				Name: name,
				Info: &rtnetlink.LinkInfo{Kind: "veth", Data: &driver.Veth{
					PeerInfo: &rtnetlink.LinkMessage{Attributes: &rtnetlink.LinkAttributes{
						Name:  peerName,
						NetNS: rtnetlink.NetNSForFD(uint32(peer.FD())),
					}},
				}},
			},
		})
	})
	if err != nil {
		return near, far, fmt.Errorf("make veth %s of %s to %s of %s (does this kernel have veth?): %w",
			name, ns.name, peerName, peer.name, err)
	}
	if err := errors.Join(ns.linkUp(name), peer.linkUp(peerName)); err != nil {
		return near, far, err
	}
	near, nearErr := ns.linkEnd(name)
	far, farErr := peer.linkEnd(peerName)
	return near, far, errors.Join(nearErr, farErr)
}

// linkUp brings the named link up.
func (ns *Namespace) linkUp(name string) error {
	end, err := ns.linkEnd(name)
	if err != nil {
		return err
	}
	err = ns.routing(func(conn *rtnetlink.Conn) error {
		return conn.Link.Set(&rtnetlink.LinkMessage{
			Index: end.index, Flags: unix.IFF_UP, Change: unix.IFF_UP,
		})
	})
	if err != nil {
		return fmt.Errorf("bring link %s of %s up: %w", name, ns.name, err)
	}
	return nil
}

func (ns *Namespace) linkEnd(name string) (linkEnd, error) {
	var found linkEnd
	err := ns.routing(func(conn *rtnetlink.Conn) error {
		links, err := conn.Link.List()
		if err != nil {
			return err
		}
		for _, link := range links {
			if link.Attributes != nil && link.Attributes.Name == name {
				found = linkEnd{ns: ns, name: name, index: link.Index, mac: link.Attributes.Address}
				return nil
			}
		}
		return os.ErrNotExist
	})
	if err != nil {
		return found, fmt.Errorf("find link %s of %s: %w", name, ns.name, err)
	}
	return found, nil
}

// addAddress puts an address on the link. IPv6 addresses skip duplicate
// address detection, so that they can be used at once.
func (end linkEnd) addAddress(prefix netip.Prefix) error {
	message := &rtnetlink.AddressMessage{
		Family:       family(prefix.Addr()),
		PrefixLength: uint8(prefix.Bits()),
		Index:        end.index,
		Attributes: &rtnetlink.AddressAttributes{
			Address: prefix.Addr().AsSlice(),
			Local:   prefix.Addr().AsSlice(),
		},
	}
	if prefix.Addr().Is6() {
		message.Flags = unix.IFA_F_NODAD
		message.Attributes.Flags = unix.IFA_F_NODAD
	}
	err := end.ns.routing(func(conn *rtnetlink.Conn) error { return conn.Address.New(message) })
	if err != nil {
		return fmt.Errorf("add address %s to link %s of %s: %w", prefix, end.name, end.ns.name, err)
	}
	return nil
}

// addRoute adds a route over the link: by the gateway, or without one (the
// zero Addr) to what is directly behind the link.
func (end linkEnd) addRoute(to netip.Prefix, gateway netip.Addr) error {
	message := &rtnetlink.RouteMessage{
		Family:    family(to.Addr()),
		DstLength: uint8(to.Bits()),
		Table:     unix.RT_TABLE_MAIN,
		Protocol:  unix.RTPROT_STATIC,
		Type:      unix.RTN_UNICAST,
		Scope:     unix.RT_SCOPE_UNIVERSE,
		Attributes: rtnetlink.RouteAttributes{
			OutIface: end.index,
		},
	}
	if to.Bits() > 0 {
		message.Attributes.Dst = to.Addr().AsSlice()
	}
	if gateway.IsValid() {
		message.Attributes.Gateway = gateway.AsSlice()
	} else if to.Addr().Is4() {
		message.Scope = unix.RT_SCOPE_LINK
	}
	err := end.ns.routing(func(conn *rtnetlink.Conn) error { return conn.Route.Replace(message) })
	if err != nil {
		return fmt.Errorf("add route to %s over link %s of %s: %w", to, end.name, end.ns.name, err)
	}
	return nil
}

// addNeighbour records for good which link-layer address has addr, so that no
// ARP or neighbour discovery delays or loses the first packets.
func (end linkEnd) addNeighbour(addr netip.Addr, mac net.HardwareAddr) error {
	err := end.ns.routing(func(conn *rtnetlink.Conn) error {
		return conn.Neigh.New(&rtnetlink.NeighMessage{
			Family: uint16(family(addr)),
			Index:  end.index,
			State:  unix.NUD_PERMANENT,
			Attributes: &rtnetlink.NeighAttributes{
				Address: addr.AsSlice(), LLAddress: mac, IfIndex: end.index,
			},
		})
	})
	if err != nil {
		return fmt.Errorf("add neighbour %s to link %s of %s: %w", addr, end.name, end.ns.name, err)
	}
	return nil
}

// routing runs fn with an rtnetlink socket inside the namespace.
func (ns *Namespace) routing(fn func(*rtnetlink.Conn) error) (err error) {
	conn, err := rtnetlink.Dial(&netlink.Config{NetNS: ns.FD()})
	if err != nil {
		return fmt.Errorf("open rtnetlink in %s: %w", ns.name, privilege.Explain(err))
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return fn(conn)
}

// setSysctls writes sysctls of the namespace itself (net/...): those that the
// kernel keeps per network namespace, never one of the machine.
func (ns *Namespace) setSysctls(values map[string]string) error {
	return ns.Do(func() error {
		for name, value := range values {
			if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
				return fmt.Errorf("set %s of network namespace %s to %s (is /proc/sys writable?): %w",
					name, ns.name, value, err)
			}
		}
		return nil
	})
}

func family(addr netip.Addr) uint8 {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
