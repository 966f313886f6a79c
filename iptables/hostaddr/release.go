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

// Instances share a link, or lo, and each may ask for other addresses. So addresses
// go one by one: whoever gives one up takes it away unless somebody else asks for
// it, and the link goes with its last address.

// Release gives up the addresses that we hold and that are not in keep.
func (h *Host) Release(keep []netip.Addr) error {
	if h.device == "" {
		return nil
	}
	given := slices.DeleteFunc(slices.Clone(h.held), func(a netip.Addr) bool { return slices.Contains(keep, a) })
	if len(given) == 0 {
		return nil
	}
	claims, err := h.claims()
	if err != nil {
		return err
	}
	h.held = slices.DeleteFunc(h.held, func(a netip.Addr) bool { return slices.Contains(given, a) })
	conn, err := h.look()
	if err != nil {
		return err
	}
	defer conn.close()
	return conn.remove(h.device, h.unclaimed(given, claims))
}

// Left returns the addresses that instances put on this node, that are not in keep,
// and for which nobody asks: those of a process that was killed, or that ended
// while another one still asked for them. There are none with Config.Keep, by
// which they are meant to stay.
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
		return nil, nil // without a look at the rules of others
	}
	claims, err := h.cfg.Claims()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(out, func(a netip.Addr) bool { return claims.Of(a) != "" }), nil
}

// Clear takes addresses that Left returned off whatever carries them.
func (h *Host) Clear(left []netip.Addr) error {
	return h.clear(func(a Address) bool { return a.Marked && slices.Contains(left, a.Addr) })
}

// Remove gives up what we hold, and takes along what others left and nobody asks
// for. Addresses without a mark, and with them the link if it is ours, go when none
// that it carries is asked for: Linux before 5.18 keeps no mark.
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

// removeLink deletes our link unless somebody asks for what it carries.
func (h *Host) removeLink(claims iptables.Claims) error {
	conn, err := h.look()
	if err != nil {
		return err
	}
	defer conn.close()
	index := indexOf(conn.names, h.device)
	asked := func(p address) bool { return p.index == index && claims.Of(p.addr) != "" }
	if index == 0 || slices.ContainsFunc(conn.present, asked) {
		return nil
	}
	if err := conn.deleteLink(index); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", h.device, explain(err))
	}
	return nil
}

// claims are those of others.
func (h *Host) claims() (iptables.Claims, error) {
	if h.cfg.Claims == nil {
		return iptables.Claims{}, nil
	}
	claims, err := h.cfg.Claims()
	if err != nil {
		err = fmt.Errorf("the listen addresses stay, since it is not known who else asks for them (`trackless rules remove` takes them away if nobody does): %w", err)
	}
	return claims, err
}

// unclaimed leaves out the addresses that stay for others, and tells of them.
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
		h.cfg.Log("listen addresses stay on this node, since others ask for them: %s", strings.Join(stay, ", "))
	}
	return free
}

// clear takes addresses off their devices, and links that were made for them and
// carry nothing any more.
func (h *Host) clear(gone func(Address) bool) error {
	devices, err := Inspect(h.cfg, h.link, h.held)
	if err != nil {
		return err
	}
	conn, err := h.look()
	if err != nil {
		return err
	}
	defer conn.close()
	var errs []error
	for _, d := range devices {
		var addrs []netip.Addr
		for _, a := range d.Addresses {
			if gone(a) {
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

// remove takes addresses, and our routes to them, off a device. That there are none
// is no error.
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
		// The kernel looks for its own route and leaves ours.
		errs = append(errs, c.deleteRoutes(index, a))
	}
	return errors.Join(errs...)
}
