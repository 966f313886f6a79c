package sockets

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

func TestConnectionsAreReset(t *testing.T) {
	for _, tc := range []struct {
		name    string
		proto   iptables.Proto // of the endpoint; that of the connection is TCP
		devices []string
		resets  bool
	}{
		{name: "all", proto: iptables.TCP, resets: true},
		{name: "clients behind a device", proto: iptables.TCP, devices: []string{"veth1", "lo"}, resets: true},
		{name: "clients behind another device", proto: iptables.TCP, devices: []string{"veth1"}},
		{name: "no device", proto: iptables.TCP, devices: []string{}},
		{name: "at another endpoint", proto: iptables.UDP},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			conn := heldConnection(t)
			server := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
			if err := Reset([]iptables.Endpoint{{Addr: server.Addr(), Port: server.Port(), Proto: tc.proto}}, tc.devices); err != nil {
				t.Fatal(err)
			}
			if !tc.resets {
				query(t, conn)
				return
			}
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("%v, want %v", err, unix.ECONNRESET)
			}
		})
	}
}

// Another file may have got the number of a descriptor before it is used.
func TestAnotherFileIsNotReset(t *testing.T) {
	t.Parallel()
	conn := heldConnection(t)
	server, client := conn.RemoteAddr().(*net.TCPAddr).AddrPort(), conn.LocalAddr().(*net.TCPAddr).AddrPort()
	fd, ok := connection(server, client)
	if !ok {
		t.Fatal("the connection is not found")
	}
	former := iptables.Connection{Client: netip.AddrPortFrom(client.Addr(), client.Port()^1), Listen: server}
	if err := resetConnection(fd, former); err != nil {
		t.Fatal(err)
	}
	query(t, conn)
}
