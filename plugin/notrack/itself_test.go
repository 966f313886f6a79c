//go:build privileged

package notrack

import (
	"net"
	"net/netip"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

func TestListensAt(t *testing.T) {
	t.Parallel()
	listen := []iptables.Endpoint{{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.UDP}}
	testns.New(t).Do(func() {
		resolved, err := net.ListenPacket("udp", "127.0.0.53:53")
		if err != nil {
			t.Error(err)
			return
		}
		defer resolved.Close()
		for _, tc := range []struct {
			name, server string
			everywhere   bool
			want         bool
		}{
			{"a listen address", "10.96.0.10:53", false, true},
			{"another port of it", "10.96.0.10:5353", false, false},
			{"another address", "10.96.0.99:53", false, false},
			{"a local one, of a socket for all", "127.0.0.1:53", true, true},
			{"a local one, of sockets for some", "127.0.0.1:53", false, false},
			{"a local one of another process", "127.0.0.53:53", true, false},
			{"a remote one, of a socket for all", "192.0.2.53:53", true, false},
		} {
			if got := listensAt(listen, tc.everywhere, netip.MustParseAddrPort(tc.server)); got != tc.want {
				t.Errorf("%s: %t, want %t", tc.name, got, tc.want)
			}
		}
	})
}
