package hostaddr

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// Instances share a link, or lo, and each may use other addresses. So they remove
// addresses one by one: an instance that no longer needs an address removes it unless
// others use it. The last address is removed with the link.

// Release removes the addresses that we hold, except those in keep and those that
// others use.
func (h *Host) Release(keep []netip.Addr) error {
	if h.device == "" {
		return nil
	}
	unneeded := slices.DeleteFunc(slices.Clone(h.held), func(a netip.Addr) bool { return slices.Contains(keep, a) })
	if len(unneeded) == 0 {
		return nil
	}
	claims, err := h.claims()
	if err != nil {
		return err
	}
	h.held = slices.DeleteFunc(h.held, func(a netip.Addr) bool { return slices.Contains(unneeded, a) })
	conn, err := h.open()
	if err != nil {
		return err
	}
	defer conn.close()
	return conn.remove(h.device, h.unclaimed(unneeded, claims))
}

// Left returns the addresses that instances put on this node and that nobody uses,
// except those in keep. A process that was killed left them, or one that ended while
// another one still used them. With Config.Keep there are none, since addresses are
// meant to stay.
func (h *Host) Left(keep []netip.Addr) ([]netip.Addr, error) {
	if h.cfg.Keep || h.cfg.Claims == nil || h.device == "" {
		return nil, nil
	}
	devices, err := Inspect(h.cfg, h.device, nil)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, d := range devices {
		for _, a := range d.Addresses {
			if a.Marked && !slices.Contains(keep, a.Addr) && !slices.Contains(out, a.Addr) {
				out = append(out, a.Addr)
			}
		}
	}
	if len(out) == 0 {
		return nil, nil // reading the claims is expensive
	}
	claims, err := h.cfg.Claims()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(out, func(a netip.Addr) bool { return claims.Of(a) != "" }), nil
}

// Clear removes addresses that Left returned from all devices.
func (h *Host) Clear(left []netip.Addr) error {
	return h.clear(func(a Address) bool { return a.Marked && slices.Contains(left, a.Addr) })
}

// Remove removes the addresses that we hold, and those that others left and nobody
// uses. It deletes our link, with addresses that have no mark, if nobody uses any
// address on it: Linux before 5.18 keeps no mark.
func (h *Host) Remove() error {
	if h.cfg.Keep || h.device == "" {
		return nil
	}
	claims, err := h.claims()
	if err != nil {
		return err
	}
	free := h.unclaimed(h.held, claims)
	err = h.clear(func(a Address) bool {
		return slices.Contains(free, a.Addr) || h.cfg.Claims != nil && a.Marked && claims.Of(a.Addr) == ""
	})
	if h.ours {
		err = errors.Join(err, h.removeLink(claims))
	}
	h.device, h.ours, h.held = "", false, nil
	return err
}

// removeLink deletes our link unless anybody uses an address on it.
func (h *Host) removeLink(claims iptables.Claims) error {
	conn, err := h.open()
	if err != nil {
		return err
	}
	defer conn.close()
	index := indexOf(conn.names, h.device)
	used := func(p address) bool { return p.index == index && claims.Of(p.addr) != "" }
	if index == 0 || slices.ContainsFunc(conn.present, used) {
		return nil
	}
	if err := conn.deleteLink(index); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", h.device, explain(err))
	}
	return nil
}

// claims returns which addresses others use.
func (h *Host) claims() (iptables.Claims, error) {
	if h.cfg.Claims == nil {
		return iptables.Claims{}, nil
	}
	claims, err := h.cfg.Claims()
	if err != nil {
		err = fmt.Errorf("the listen addresses stay, since it is not known whether others use them; `trackless rules remove` removes them if nobody does: %w", err)
	}
	return claims, err
}

// unclaimed returns the addresses that nobody else uses. It logs the others.
func (h *Host) unclaimed(addrs []netip.Addr, claims iptables.Claims) (free []netip.Addr) {
	var stay []string
	for _, a := range addrs {
		if who := claims.Of(a); who != "" {
			stay = append(stay, fmt.Sprintf("%s (%s)", a, who))
		} else {
			free = append(free, a)
		}
	}
	if len(stay) > 0 && h.cfg.Log != nil {
		h.cfg.Log("listen addresses stay on this node, since others use them: %s", strings.Join(stay, ", "))
	}
	return free
}

// clear removes addresses from their devices, and deletes links that were made for
// listen addresses and have none left.
func (h *Host) clear(unneeded func(Address) bool) error {
	devices, err := Inspect(h.cfg, h.link, h.held)
	if err != nil {
		return err
	}
	conn, err := h.open()
	if err != nil {
		return err
	}
	defer conn.close()
	var errs []error
	for _, d := range devices {
		var addrs []netip.Addr
		for _, a := range d.Addresses {
			if unneeded(a) {
				addrs = append(addrs, a.Addr)
			}
		}
		index := indexOf(conn.names, d.Name)
		switch {
		case len(addrs) == 0 || index == 0:
		case d.Link && len(addrs) == len(d.Addresses) && d.Name != h.device:
			if err := conn.deleteLink(index); err != nil && !errors.Is(err, unix.ENODEV) {
				errs = append(errs, fmt.Errorf("delete link %s: %w", d.Name, explain(err)))
			}
		default:
			errs = append(errs, conn.remove(d.Name, addrs))
		}
	}
	return errors.Join(errs...)
}

// remove removes addresses, and our routes to them, from a device. It is no error if
// they do not exist.
func (c *conn) remove(device string, addrs []netip.Addr) error {
	index := indexOf(c.names, device)
	if index == 0 {
		return nil
	}
	var errs []error
	for _, a := range addrs {
		if err := c.deleteAddress(index, a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("remove address %s from %s: %w", a, device, explain(err)))
		}
		// With the address the kernel deletes its own route, but not ours.
		errs = append(errs, c.deleteRoutes(index, a))
	}
	return errors.Join(errs...)
}
