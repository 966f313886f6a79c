package tuple

import (
	"net"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

func BenchmarkDestination(b *testing.B) {
	conn, err := net.ListenPacket("udp", "[::]:0")
	if err != nil {
		b.Fatal(err)
	}
	writers := make(chan dns.ResponseWriter, 1)
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, _ *dns.Msg) { writers <- w })}
	done := make(chan struct{})
	go func() {
		_ = server.ActivateAndServe()
		close(done)
	}()
	defer func() {
		_ = conn.Close()
		<-done
	}()
	client, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()).String())
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	query, err := new(dns.Msg).SetQuestion(".", dns.TypeNS).Pack()
	if err != nil {
		b.Fatal(err)
	}
	if _, err := client.Write(query); err != nil {
		b.Fatal(err)
	}
	w := <-writers
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := destinationOf(w); !ok {
			b.Fatal("not found")
		}
	}
}
