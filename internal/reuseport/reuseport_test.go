package reuseport

import (
	"context"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// group has sockets at one address.
type group struct {
	at  netip.AddrPort
	fds []int
}

// open opens n sockets over UDP, or TCP listeners.
func open(t *testing.T, a netip.Addr, tcp bool, n int) (g group) {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		_ = raw.Control(func(fd uintptr) {
			g.fds = append(g.fds, int(fd))
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		})
		return err
	}}
	lc.SetMultipathTCP(false)
	g.at = netip.AddrPortFrom(a, 0)
	for range n {
		if tcp {
			l, err := lc.Listen(context.Background(), "tcp", g.at.String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			g.at = l.Addr().(*net.TCPAddr).AddrPort()
			continue
		}
		p, err := lc.ListenPacket(context.Background(), "udp", g.at.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		g.at = p.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	return g
}

// waiting returns how many packets or connections wait at each socket. Each packet has one byte.
func (g *group) waiting(t *testing.T, tcp bool) (out []int) {
	t.Helper()
	for _, fd := range g.fds {
		n := 0
		if tcp {
			info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			if err != nil {
				t.Fatal(err)
			}
			n = int(info.Unacked) // of a listener
		} else {
			for buf := make([]byte, 1); ; n++ {
				if _, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT); err != nil {
					break
				}
			}
		}
		out = append(out, n)
	}
	return out
}

// send sends from a port whose lowest bits are n, or from any if n is negative.
func (g *group) send(t *testing.T, tcp bool, from netip.Addr, n int) {
	t.Helper()
	network := "udp"
	if tcp {
		network = "tcp"
	}
	for port := 40000 + n; ; port += Reached {
		if n < 0 {
			port = 0
		}
		d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, uint16(port)))}
		if tcp {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, uint16(port)))
		}
		c, err := d.Dial(network, g.at.String())
		if n >= 0 && port < 60000 && err != nil {
			continue // in use
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if !tcp {
			if _, err := c.Write([]byte{1}); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
}

// TestPrograms sends from the listen address, and from others, to three sockets.
func TestPrograms(t *testing.T) {
	const sockets, clients = 3, 32
	v4, v6 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
	for _, tc := range []struct {
		name string
		at   netip.Addr
		tcp  bool
	}{{"UDP", v4, false}, {"TCP", v4, true}, {"UDP over IPv6", v6, false}, {"TCP over IPv6", v6, true}} {
		t.Run(tc.name, func(t *testing.T) {
			g := open(t, tc.at, tc.tcp, sockets)
			attach := func(code []bpf.Instruction) {
				t.Helper()
				if err := Attach(g.fds[0], code); err != nil {
					t.Fatal(err)
				}
			}
			attach(BySource(tc.at, []int{2}))
			before := g.waiting(t, tc.tcp)
			for n := range Reached {
				g.send(t, tc.tcp, tc.at, n)
			}
			all := 0
			for i, n := range g.waiting(t, tc.tcp) {
				all += n - before[i]
				if n == before[i] {
					t.Errorf("socket %d got nothing from the listen address", i)
				}
			}
			if all != Reached {
				t.Errorf("%d came, want %d", all, Reached)
			}
			expect := func(what string, sent int) {
				t.Helper()
				after := g.waiting(t, tc.tcp)
				for i, n := range after {
					want := 0
					if i == 2 {
						want = sent
					}
					if tc.tcp {
						n -= before[i]
					}
					if n != want {
						t.Errorf("%s: socket %d got %d, want %d", what, i, n, want)
					}
				}
			}
			if tc.at.Is4() { // IPv6 has one address for loopback
				before = g.waiting(t, tc.tcp)
				for i := range clients {
					g.send(t, tc.tcp, netip.AddrFrom4([4]byte{127, 0, 1, byte(1 + i)}), -1)
				}
				expect("by source", clients)
			}
			before = g.waiting(t, tc.tcp)
			attach(Any([]int{2}))
			for range clients {
				g.send(t, tc.tcp, tc.at, -1)
			}
			expect("any", clients)
			if err := Detach(g.fds[1]); err != nil {
				t.Error(err)
			}
			if err := Detach(g.fds[1]); err != nil {
				t.Errorf("without a program: %v", err)
			}
		})
	}
}

// A kernel that cannot remove a program gets one that leaves all to the kernel.
func TestDetach(t *testing.T) {
	const unknown, connections = 9999, 64
	at := netip.MustParseAddr("127.0.0.1")
	for _, option := range []int{unix.SO_DETACH_REUSEPORT_BPF, unknown} {
		g := open(t, at, true, 2)
		first := func() int { // how many came to it
			for range connections {
				g.send(t, true, at, -1)
			}
			return g.waiting(t, true)[0]
		}
		// Connections come to the second listener, before the program is removed to both.
		if err := Attach(g.fds[0], Any([]int{1})); err != nil {
			t.Fatal(err)
		}
		if n := first(); n != 0 {
			t.Errorf("the program has no effect: %d came to the first", n)
		}
		if err := detach(g.fds[0], option); err != nil {
			t.Fatal(err)
		}
		if first() == 0 {
			t.Errorf("option %d: the program still chooses", option)
		}
	}
}
