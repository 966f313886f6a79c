package sockets

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// The kernel drops packets of the sources alone, and as many of them as it should.
func TestThin(t *testing.T) {
	t.Parallel()
	const packets = 400
	for _, tc := range []struct {
		name        string
		listen      string
		thinned     []string
		pass        float64
		from, other string
		least, most int // of from
	}{
		{"no packet passes", "127.0.0.1:0", []string{"127.0.0.2"}, 0, "127.0.0.2", "127.0.0.3", 0, 0},
		{"a quarter passes", "127.0.0.1:0", []string{"127.0.0.9", "127.0.0.2"}, 0.25, "127.0.0.2", "127.0.0.3", packets / 10, packets / 2},
		{"nobody is thinned", "127.0.0.1:0", nil, 0, "127.0.0.2", "127.0.0.3", packets, packets},
		{"IPv6", "[::1]:0", []string{"127.0.0.2", "fd00::1", "::1"}, 0, "::1", "", 0, 0},
		{"another IPv6 address", "[::1]:0", []string{"fd00::1", "fd00::2", "::2", "1::1"}, 0, "::1", "", packets, packets},
		{"IPv4 at a wildcard of both families", "[::]:0", []string{"fd00::1", "127.0.0.2"}, 0, "127.0.0.2", "127.0.0.3", 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.ListenPacket("udp", tc.listen)
			if err != nil {
				t.Skipf("this machine has no such address: %v", err)
			}
			defer conn.Close()
			var from []netip.Addr
			for _, a := range tc.thinned {
				from = append(from, netip.MustParseAddr(a))
			}
			raw, err := conn.(*net.UDPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			err = Control(raw, func(fd int) error {
				own, err := unix.Getsockname(fd)
				if err != nil {
					return err
				}
				listener := []listeningSocket{{fd, own}}
				if err := thin(listener, []netip.Addr{netip.MustParseAddr("127.0.0.3")}, 0); err != nil {
					return err
				}
				return thin(listener, from, tc.pass) // it replaces the former filter
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := received(t, conn, tc.from, packets); got < tc.least || got > tc.most {
				t.Errorf("%d of %d packets from %s arrived, want %d to %d", got, packets, tc.from, tc.least, tc.most)
			}
			if tc.other != "" {
				if got := received(t, conn, tc.other, packets); got != packets {
					t.Errorf("%d of %d packets from %s arrived", got, packets, tc.other)
				}
			}
		})
	}
}

// received sends packets from the address, one after the other, and returns how many arrive.
func received(t *testing.T, conn net.PacketConn, from string, packets int) (n int) {
	t.Helper()
	to := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	if addr := netip.MustParseAddr(from); to.Addr().IsUnspecified() {
		loopback := netip.IPv6Loopback()
		if addr.Is4() {
			loopback = netip.MustParseAddr("127.0.0.1")
		}
		to = netip.AddrPortFrom(loopback, to.Port())
	}
	client, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 16)
	for range packets {
		if _, err := client.Write([]byte("query")); err != nil {
			t.Fatal(err)
		}
		// Loopback delivers a packet before Write returns.
		if err := Control(raw, func(fd int) error {
			_, _, err := unix.Recvfrom(fd, buffer, unix.MSG_DONTWAIT)
			return err
		}); err == nil {
			n++
		}
	}
	return n
}

// The kernel never drops packets from an address at which we listen: from there come the
// probes that renew the lease. When there is no load any more, or one that listens elsewhere,
// nothing is dropped any more.
func TestThinUDPListeners(t *testing.T) {
	t.Parallel()
	const own, flooder = "127.0.0.1", "127.0.0.2"
	for _, tc := range []struct {
		name         string
		goneBefore   bool // the listener is no longer of the load
		from         []string
		own, flooder int // packets that arrive
	}{
		{"a flood from here and elsewhere", false, []string{own, flooder}, 10, 0},
		{"a flood from here", false, []string{own}, 10, 10},
		{"over", false, nil, 10, 10},
		{"over, and the load is gone", true, nil, 10, 10},
		{"a flood elsewhere, and the load is gone", true, []string{flooder}, 10, 10},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.ListenPacket("udp4", own+":0")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			at := conn.LocalAddr().(*net.UDPAddr).AddrPort()
			listen := []iptables.Endpoint{{Addr: at.Addr(), Port: at.Port(), Proto: iptables.UDP}}
			var l UDPListeners
			if err := l.Thin(listen, []netip.Addr{netip.MustParseAddr(flooder)}, 0); err != nil {
				t.Fatal(err)
			}
			if n := received(t, conn, flooder, 10); n > 0 {
				t.Fatalf("%d packets of the flood arrived", n)
			}
			if tc.goneBefore {
				listen = nil
			}
			var from []netip.Addr
			for _, a := range tc.from {
				from = append(from, netip.MustParseAddr(a))
			}
			if err := l.Thin(listen, from, 0); err != nil {
				t.Fatal(err)
			}
			if n := received(t, conn, own, 10); n != tc.own {
				t.Errorf("%d packets from the own address arrived, want %d", n, tc.own)
			}
			if n := received(t, conn, flooder, 10); n != tc.flooder {
				t.Errorf("%d packets of the flood arrived, want %d", n, tc.flooder)
			}
		})
	}
}

// The kernel counts packets that a filter dropped as if they had found no room. Who reads
// that number must know of the filter.
func TestFilteredPacketsAreCounted(t *testing.T) {
	t.Parallel()
	conn, send, control := listening(t)
	at := Unmap(conn.LocalAddr().(*net.UDPAddr).AddrPort())
	control(func(fd int) {
		if err := thin([]listeningSocket{{fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}}}, []netip.Addr{at.Addr()}, 0); err != nil {
			t.Fatal(err)
		}
	})
	send(10, 10)
	control(func(fd int) {
		if _, dropped := bufferOf(fd); dropped != 10 {
			t.Errorf("%d packets are counted as dropped, want 10", dropped)
		}
	})
}
