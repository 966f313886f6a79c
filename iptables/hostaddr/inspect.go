package hostaddr

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// Device is an interface of this host that carries listen addresses.
type Device struct {
	Name string
	// Kind is the kernel's name for its type, "dummy" for example; empty for
	// lo and for hardware.
	Kind string
	// Link tells that the device is a link made to carry listen addresses, by
	// Trackless or by Kubernetes' node-cache.
	Link      bool
	Addresses []Address
}

// Address is a listen address on a device, or our local route to one that is gone.
type Address struct {
	Addr netip.Addr
	// Marked tells that an instance of Trackless put it there. Linux before
	// 5.18 keeps no mark.
	Marked bool
}

// Inspect lists the link of that name, and every other device that carries one of the
// addresses or an address with our mark. It changes nothing and needs no privilege.
func Inspect(cfg Config, link string, addrs []netip.Addr) ([]Device, error) {
	h := New(cfg, link)
	conn, err := h.open()
	if err != nil {
		return nil, err
	}
	defer conn.close()
	routed, err := conn.routed()
	if err != nil {
		return nil, err
	}
	present, names := slices.Concat(conn.present, routed), conn.names
	var out []Device
	for index, name := range names {
		d := Device{Name: name}
		marked := false
		for _, p := range present {
			if p.index != index || p.addr.IsLinkLocalUnicast() && p.addr.Is6() || onLoopbackAlways(p.addr) {
				continue
			}
			if slices.ContainsFunc(d.Addresses, func(a Address) bool { return a.Addr == p.addr }) {
				continue // its route
			}
			if p.ours() || name == link || slices.Contains(addrs, p.addr) {
				marked = marked || p.ours()
				d.Addresses = append(d.Addresses, Address{Addr: p.addr, Marked: p.ours()})
			}
		}
		if len(d.Addresses) == 0 && name != link {
			continue
		}
		if d.Kind, err = conn.linkKind(index); err != nil {
			return nil, err
		}
		d.Link = d.Kind == h.cfg.kind && (name == link || marked)
		slices.SortFunc(d.Addresses, func(a, b Address) int { return a.Addr.Compare(b.Addr) })
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b Device) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// Leftovers returns the addresses of a device that nobody uses: those that are ours,
// and those that may be another program's. link tells that the whole device can be
// removed: it is ours, and all its addresses are.
func (d Device) Leftovers(claims iptables.Claims) (link bool, ours, doubtful []netip.Addr) {
	link = d.Link
	for _, a := range d.Addresses {
		switch {
		case claims.Of(a.Addr) != "":
			link = false
		case a.Marked:
			ours = append(ours, a.Addr)
		default:
			link = false
			doubtful = append(doubtful, a.Addr)
		}
	}
	return link, ours, doubtful
}

// RemoveLink deletes a link with all its addresses. It is no error if the link does not
// exist. It refuses a link that was not made for listen addresses.
func RemoveLink(cfg Config, name string) error {
	h := New(cfg, name)
	conn, err := h.open()
	if err != nil {
		return err
	}
	defer conn.close()
	names := conn.names
	index := indexOf(names, name)
	if index == 0 {
		return nil
	}
	kind, err := conn.linkKind(index)
	if err != nil {
		return err
	}
	if kind != h.cfg.kind {
		return fmt.Errorf("delete link %s: it is no %s link: %w", name, h.cfg.kind, errNotOurs)
	}
	if err := conn.deleteLink(index); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", name, explain(err))
	}
	return nil
}

// errNotOurs says that another program made a link.
var errNotOurs = errors.New("another program made it")

// RemoveAddress removes one address, and our local route to it, from a device. It is no
// error if they do not exist.
func RemoveAddress(cfg Config, device string, a netip.Addr) error {
	conn, err := New(cfg, device).open()
	if err != nil {
		return err
	}
	defer conn.close()
	return conn.remove(device, []netip.Addr{a})
}
