// Package testport finds ports for servers of tests. A port that the kernel gives to one socket is
// often taken over the other protocol, by a client of another test.
package testport

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
)

// The ports are below those that Linux gives to sockets that ask for none
// (ip_local_port_range): no client takes one between two steps of a test.
const (
	first  = 10000
	behind = 32768
	tries  = 100
)

// Unused returns an address with a port that nobody uses over UDP or TCP.
func Unused(t testing.TB, ip string) netip.AddrPort {
	t.Helper()
	listener, packets := Both(t, net.ListenConfig{}, ip)
	at := listener.Addr().(*net.TCPAddr).AddrPort()
	_ = listener.Close()
	_ = packets.Close()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// Both listens over TCP and UDP at the same port of an address. The caller closes both.
func Both(t testing.TB, lc net.ListenConfig, ip string) (*net.TCPListener, *net.UDPConn) {
	t.Helper()
	a, err := netip.ParseAddr(ip)
	if err != nil {
		t.Fatal(err)
	}
	for range tries {
		at := netip.AddrPortFrom(a, uint16(first+rand.IntN(behind-first))).String()
		var listener net.Listener
		if listener, err = lc.Listen(t.Context(), "tcp", at); err != nil {
			continue
		}
		var packets net.PacketConn
		if packets, err = lc.ListenPacket(t.Context(), "udp", at); err == nil {
			return listener.(*net.TCPListener), packets.(*net.UDPConn)
		}
		_ = listener.Close()
	}
	t.Fatalf("no port of %s is free over UDP and TCP: %v", ip, err)
	return nil, nil
}
