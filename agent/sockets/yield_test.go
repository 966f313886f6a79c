package sockets

import (
	"context"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// listenTogether opens a UDP socket that shares its address with others.
func listenTogether(t *testing.T, at string) (*net.UDPConn, int) {
	t.Helper()
	fd := -1
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return Control(raw, func(s int) error {
			fd = s
			return unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		})
	}}
	conn, err := lc.ListenPacket(context.Background(), "udp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.UDPConn), fd
}

func TestYield(t *testing.T) {
	for _, tc := range []struct{ listen, asked string }{
		{"127.0.0.1:0", "127.0.0.1"}, {"[::1]:0", "::1"}, {"0.0.0.0:0", "127.0.0.1"}, {"[::]:0", "127.0.0.1"}, {"[::]:0", "::1"},
	} {
		t.Run(tc.listen+" asked at "+tc.asked, func(t *testing.T) {
			first, fd := listenTogether(t, tc.listen)
			local := first.LocalAddr().(*net.UDPAddr).AddrPort()
			second, other := listenTogether(t, local.String())
			at := netip.AddrPortFrom(netip.MustParseAddr(tc.asked), local.Port())
			const each = 32
			ask := func() (clients []*net.UDPConn) {
				t.Helper()
				for range each {
					client, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = client.Close() })
					if _, err := client.Write([]byte("query")); err != nil {
						t.Fatal(err)
					}
					clients = append(clients, client)
				}
				return clients
			}
			before := ask()
			endpoints := []iptables.Endpoint{{Addr: at.Addr(), Port: at.Port(), Proto: iptables.UDP}}
			// A program that chooses the first socket of the group, which is ours.
			always := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
			if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &unix.SockFprog{Len: 1, Filter: &always[0]}); err != nil {
				t.Fatal(err)
			}
			if err := yieldSockets([]int{fd}, endpoints); err != nil {
				t.Fatal(err)
			}
			if err := unix.SetsockoptInt(other, unix.SOL_SOCKET, unix.SO_DETACH_REUSEPORT_BPF, 0); err != unix.ENOENT {
				t.Errorf("the program is still attached: %v", err)
			}
			after := ask()

			fromFirst, fromSecond := answerAll(t, first), answerAll(t, second)
			if len(fromFirst) == 0 || len(fromFirst)+len(fromSecond) != 2*each {
				t.Errorf("%d and %d of %d queries were answered", len(fromFirst), len(fromSecond), 2*each)
			}
			for _, client := range append(before, after...) {
				if err := client.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
					t.Fatal(err)
				}
				if _, err := client.Read(make([]byte, 16)); err != nil {
					t.Errorf("%s was not answered: %v", client.LocalAddr(), err)
				}
			}
			for _, client := range after {
				if fromFirst[Unmap(client.LocalAddr().(*net.UDPAddr).AddrPort())] {
					t.Errorf("%s asked after the first had yielded, and was answered by it", client.LocalAddr())
				}
			}
			// Sockets at other endpoints stay as they are.
			if err := yieldSockets([]int{other}, []iptables.Endpoint{{Addr: at.Addr(), Port: 1, Proto: iptables.UDP}}); err != nil {
				t.Error(err)
			}
			if _, connected := peerName(other); connected {
				t.Error("a socket at no endpoint was connected")
			}
		})
	}
}

// answerAll answers the queries in a socket's queue. Over loopback it has all that were
// sent.
func answerAll(t *testing.T, conn *net.UDPConn) map[netip.AddrPort]bool {
	t.Helper()
	clients := map[netip.AddrPort]bool{}
	buf := make([]byte, 16)
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for {
		waiting := false
		if err := Control(raw, func(fd int) error { waiting = unread(fd) > 0; return nil }); err != nil {
			t.Fatal(err)
		}
		if !waiting {
			return clients
		}
		_, _, _, from, err := conn.ReadMsgUDPAddrPort(buf, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := conn.WriteMsgUDPAddrPort([]byte("answer"), nil, from); err != nil {
			t.Fatal(err)
		}
		clients[Unmap(from)] = true
	}
}
