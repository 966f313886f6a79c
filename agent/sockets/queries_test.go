package sockets

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// listener is a socket that listens as the DNS server's do, and its endpoint.
func listener(t *testing.T, network, address string) (*net.UDPConn, iptables.Endpoint) {
	t.Helper()
	pc, err := net.ListenPacket(network, net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pc.Close() })
	conn := pc.(*net.UDPConn)
	_ = ipv6.NewPacketConn(conn).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
	_ = ipv4.NewPacketConn(conn).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true)
	at := Unmap(conn.LocalAddr().(*net.UDPAddr).AddrPort())
	return conn, iptables.Endpoint{Addr: at.Addr(), Port: at.Port(), Proto: iptables.UDP}
}

func option(t *testing.T, conn *net.UDPConn, level, name int) (value int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = Control(raw, func(fd int) (err error) {
		value, err = unix.GetsockoptInt(fd, level, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func TestManyListenersShareTheRoom(t *testing.T) {
	t.Parallel()
	for listeners, want := range map[int]int{1: room, 4: room, 8: allRoom / 8} {
		if got := roomOf(listeners); got != want {
			t.Errorf("%d bytes for each of %d, want %d", got, listeners, want)
		}
	}
}

// Only a socket that listens at all addresses has to know to which one a query was sent.
func TestDestinationsAreToldWhereTheyDiffer(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, network, address string
		level, option, want    int
	}{
		{"IPv4", "udp4", "127.0.0.1", unix.IPPROTO_IP, unix.IP_PKTINFO, 0},
		{"IPv6", "udp6", "::1", unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 0},
		{"all of IPv4", "udp4", "0.0.0.0", unix.IPPROTO_IP, unix.IP_PKTINFO, 1},
		{"all", "udp", "::", unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			conn, at := listener(t, tc.network, tc.address)
			if at.Addr.IsUnspecified() {
				at.Addr = netip.MustParseAddr("127.0.0.1") // a query's
			}
			if before := option(t, conn, tc.level, tc.option); before != 1 {
				t.Fatalf("the option is %d before", before)
			}
			_ = new(UDPListeners).ForQueries([]iptables.Endpoint{at}) // without CAP_NET_ADMIN less room
			if got := option(t, conn, tc.level, tc.option); got != tc.want {
				t.Errorf("the option is %d, want %d", got, tc.want)
			}
			answeredFrom(t, conn, at)
		})
	}
}

// answeredFrom sends a packet to the listener, and checks where the answer comes from.
func answeredFrom(t *testing.T, conn *net.UDPConn, at iptables.Endpoint) {
	t.Helper()
	client, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at.AddrPort()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	if _, err := client.Write([]byte("query")); err != nil {
		t.Fatal(err)
	}
	packet, control := make([]byte, 16), make([]byte, 128)
	n, oob, _, from, err := conn.ReadMsgUDPAddrPort(packet, control)
	if err != nil {
		t.Fatal(err)
	}
	if told := oob > 0; told != conn.LocalAddr().(*net.UDPAddr).IP.IsUnspecified() {
		t.Errorf("control messages of %d bytes", oob)
	}
	if _, err := conn.WriteToUDPAddrPort(packet[:n], from); err != nil {
		t.Fatal(err)
	}
	// The client is connected: it takes an answer from the address that it has asked alone.
	if n, err = client.Read(packet); err != nil || !slices.Equal(packet[:n], []byte("query")) {
		t.Errorf("the answer is %q, %v", packet[:n], err)
	}
}
