package sockets

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/jsimonetti/rtnetlink/v2"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/sockets"
	"github.com/trackless-dns/trackless/iptables"
)

// Reset implements [reconcile.Config.Reset]. The client sees the reset unless a firewall
// drops our packets to it.
func Reset(endpoints []iptables.Endpoint, devices []string) error {
	listen := transportAddresses(endpoints, iptables.TCP)
	leadsTo := map[netip.Addr]string{} // the device, by client
	var errs []error
	for _, fd := range sockets.Descriptors() {
		c, ok := connectionOf(fd, listen)
		if !ok {
			continue
		}
		client := c.Client.Addr()
		if _, known := leadsTo[client]; !known && devices != nil {
			var err error
			leadsTo[client], err = deviceTo(client)
			errs = append(errs, err)
		}
		if devices == nil || slices.Contains(devices, leadsTo[client]) {
			errs = append(errs, resetConnection(fd, c))
		}
	}
	return errors.Join(errs...)
}

// resetConnection resets the connection of a descriptor when its queries so far are answered.
func resetConnection(fd int, c iptables.Connection) error { return end(fd, c, unix.SHUT_RD) }

// end shuts the connection of a descriptor down, so that the server closes and resets it. The
// server may close it meanwhile, and another file may get its number: so it works on a
// duplicate, and checks it.
func end(fd int, c iptables.Connection, how int) error {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil // closed
	}
	defer unix.Close(own)
	if now, ok := connectionOf(own, map[netip.AddrPort]bool{c.Listen: true}); !ok || now != c {
		return nil
	}
	// The server reads the end of the connection and closes it, which resets it
	// when there is no time to linger (socket(7)).
	err = unix.SetsockoptLinger(own, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	if err == nil {
		err = unix.Shutdown(own, how)
	}
	if err != nil && !errors.Is(err, unix.ENOTCONN) {
		return fmt.Errorf("reset the connection of %s: %w", c.Client, err)
	}
	return nil
}

// deviceTo returns the device of the route to an address, "" if there is none.
func deviceTo(a netip.Addr) (string, error) {
	conn, err := rtnetlink.Dial(nil)
	if err != nil {
		return "", fmt.Errorf("find the route to %s: %w", a, err)
	}
	defer conn.Close()
	family := uint8(unix.AF_INET)
	if a.Is6() {
		family = unix.AF_INET6
	}
	routes, err := conn.Route.Get(&rtnetlink.RouteMessage{
		Family: family, DstLength: uint8(a.BitLen()), Attributes: rtnetlink.RouteAttributes{Dst: a.AsSlice()},
	})
	if err != nil {
		return "", fmt.Errorf("find the route to %s: %w", a, err)
	}
	for _, r := range routes {
		link, err := conn.Link.Get(r.Attributes.OutIface)
		if err != nil {
			return "", fmt.Errorf("find the device that leads to %s: %w", a, err)
		}
		if link.Attributes != nil {
			return link.Attributes.Name, nil
		}
	}
	return "", nil
}
