package tuple

import (
	"net"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

func TestAddresses(t *testing.T) {
	for _, tc := range []struct {
		name          string
		remote, local net.Addr
		want          string
		proto         uint8
	}{
		{"UDP", udpAddr("10.244.0.11:4000"), udpAddr("10.96.0.10:53"), "10.244.0.11:4000 10.96.0.10:53", unix.IPPROTO_UDP},
		{"TCP", tcpAddr("10.244.0.11:4000"), tcpAddr("10.96.0.10:53"), "10.244.0.11:4000 10.96.0.10:53", unix.IPPROTO_TCP},
		{"IPv6", udpAddr("[fd00::1]:4000"), udpAddr("[fd00::a]:53"), "[fd00::1]:4000 [fd00::a]:53", unix.IPPROTO_UDP},
		{"IPv4 on a wildcard IPv6 socket", &net.UDPAddr{IP: net.ParseIP("10.244.0.11"), Port: 4000}, udpAddr("10.96.0.10:53"), "10.244.0.11:4000 10.96.0.10:53", unix.IPPROTO_UDP},
		{"neither", &net.UnixAddr{Name: "x"}, udpAddr("10.96.0.10:53"), "invalid AddrPort invalid AddrPort", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client, server, proto := Of(ends{remote: tc.remote, local: tc.local})
			if got := client.String() + " " + server.String(); got != tc.want || proto != tc.proto {
				t.Errorf("got %s proto %d, want %s proto %d", got, proto, tc.want, tc.proto)
			}
		})
	}
}

func tcpAddr(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }

// ends is a response writer between two transport addresses.
type ends struct {
	dns.ResponseWriter
	remote, local net.Addr
}

func (w ends) RemoteAddr() net.Addr { return w.remote }
func (w ends) LocalAddr() net.Addr  { return w.local }

func udpAddr(s string) net.Addr { return net.UDPAddrFromAddrPort(netip.MustParseAddrPort(s)) }
