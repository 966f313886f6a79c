package sockets

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// listening returns a socket on loopback, a function that sends packets to it, and one
// that accesses its descriptor.
func listening(t *testing.T) (conn *net.UDPConn, send func(packets, size int), control func(func(fd int))) {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	client, err := net.DialUDP("udp4", nil, conn.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	send = func(packets, size int) {
		for range packets {
			if _, err := client.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
		}
	}
	control = func(f func(fd int)) {
		if err := raw.Control(func(fd uintptr) { f(int(fd)) }); err != nil {
			t.Fatal(err)
		}
	}
	return conn, send, control
}

func TestPacketsThatDidNotFitAreCounted(t *testing.T) {
	t.Parallel()
	conn, send, control := listening(t)
	if err := conn.SetReadBuffer(1); err != nil { // the kernel sets its minimum
		t.Fatal(err)
	}
	at := Unmap(conn.LocalAddr().(*net.UDPAddr).AddrPort())
	endpoints := []iptables.Endpoint{{Addr: at.Addr(), Port: at.Port(), Proto: iptables.UDP}}
	dropped := func() (n uint64) {
		control(func(fd int) {
			sockets := listeningUDP([]int{fd}, endpoints)
			if len(sockets) != 1 {
				t.Fatalf("%d sockets listen at %s", len(sockets), at)
			}
			_, n = bufferOf(sockets[0].fd)
		})
		return n
	}
	if n := dropped(); n != 0 {
		t.Fatalf("%d dropped before any packet", n)
	}
	const packets = 100
	send(packets, 512)
	read := uint64(0)
	for buf := make([]byte, 512); conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)) == nil; read++ {
		if _, _, err := conn.ReadFromUDPAddrPort(buf); err != nil {
			break
		}
	}
	if n := dropped(); n == 0 || n+read != packets {
		t.Errorf("%d dropped and %d read of %d", n, read, packets)
	}
}

func TestOtherSocketsAreNoListeners(t *testing.T) {
	t.Parallel()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	file, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	port := UDPPort(conn)
	elsewhere := []iptables.Endpoint{{Addr: netip.MustParseAddr("127.0.0.1"), Port: port + 1, Proto: iptables.UDP}}
	here := []iptables.Endpoint{{Addr: netip.MustParseAddr("127.0.0.1"), Port: port, Proto: iptables.UDP}}
	fds := []int{int(file.Fd()), unix.Stdin}
	if got := listeningUDP(fds, elsewhere); len(got) != 0 {
		t.Errorf("%d listen elsewhere", len(got))
	}
	if got := listeningUDP(fds, here); len(got) != 1 {
		t.Errorf("%d listen here, want one", len(got))
	}
}
