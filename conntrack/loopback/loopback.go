// Package loopback finds out whether packets are tracked, by a packet of its own
// over the loopback device.
package loopback

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
)

// Tracked reports whether a packet of the calling thread's namespace is tracked:
// one datagram is sent over the loopback device, from one socket of ours to
// another, and its entry is looked up, in all zones, and deleted.
func Tracked(c *conntrack.Conn) (bool, error) {
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return false, fmt.Errorf("send a packet to ourselves: %w", err)
	}
	defer func() { _ = server.Close() }()
	client, err := net.DialUDP("udp4", nil, server.LocalAddr().(*net.UDPAddr))
	if err != nil {
		return false, fmt.Errorf("send a packet to ourselves: %w", err)
	}
	defer func() { _ = client.Close() }()
	if _, err := client.Write([]byte{0}); err != nil {
		return false, fmt.Errorf("send a packet to ourselves: %w", err)
	}
	// Over lo the packet has passed all hooks when it can be read.
	if err := server.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return false, err
	}
	if _, _, err := server.ReadFromUDPAddrPort(make([]byte, 1)); err != nil {
		return false, fmt.Errorf("a packet that we sent to ourselves did not arrive: %w", err)
	}
	from, to := client.LocalAddr().(*net.UDPAddr).AddrPort(), server.LocalAddr().(*net.UDPAddr).AddrPort()
	entry, err := c.Find(&conntrack.Tuple{
		Src: from.Addr().Unmap(), SrcPort: from.Port(), Dst: to.Addr().Unmap(), DstPort: to.Port(), Proto: conntrack.UDP,
	})
	if errors.Is(err, conntrack.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_ = c.Delete(&entry) // it would be gone in 30 s anyway
	return true, nil
}
