//go:build privileged

package tuple

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testns"
)

// The destination of a query is known for any bound address, and through the writers of
// plugins. The test fails when miekg/dns moves the field.
func TestDestination(t *testing.T) {
	for _, tc := range []struct{ name, listen, asked, network string }{
		{"an address of its own", "127.0.0.7:0", "127.0.0.7", "udp"},
		{"all of IPv4", "0.0.0.0:0", "127.0.0.7", "udp4"},
		{"IPv4 on the wildcard of both families", "[::]:0", "127.0.0.7", "udp"},
		{"IPv6 on the wildcard of both families", "[::]:0", "::1", "udp"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			testns.Root(t)
			ns := testns.New(t)
			seen := make(chan netip.AddrPort, 1)
			var conn net.PacketConn
			var err error
			ns.Do(func() { conn, err = net.ListenPacket(tc.network, tc.listen) })
			if err != nil {
				t.Fatal(err)
			}
			server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
				w = WithDestination(&wrapped{ResponseWriter: request.NewScrubWriter(r, w)})
				_, to, _ := Of(w)
				seen <- to
				_ = w.WriteMsg(new(dns.Msg).SetReply(r))
			})}
			done := make(chan struct{})
			go func() {
				_ = server.ActivateAndServe()
				close(done)
			}()
			t.Cleanup(func() {
				_ = conn.Close()
				<-done
			})
			at := netip.AddrPortFrom(netip.MustParseAddr(tc.asked), conn.LocalAddr().(*net.UDPAddr).AddrPort().Port())
			ns.Do(func() {
				client := dns.Client{Timeout: 10 * time.Second}
				_, _, err = client.Exchange(new(dns.Msg).SetQuestion(".", dns.TypeNS), at.String())
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := <-seen; got != at {
				t.Errorf("the destination of a query to %s is %s", at, got)
			}
		})
	}
}

// wrapped is a writer of a plugin.
type wrapped struct {
	dns.ResponseWriter
	_ int
}
