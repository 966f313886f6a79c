package checks

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/iptables"
)

// With SO_REUSEPORT most ports may lead to another instance, which leaves lease
// probes unanswered. The one that leads to us is found within a lease.
func TestRenewFindsThePortThatLeadsToUs(t *testing.T) {
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	listen := sockets.Unmap(server.LocalAddr().(*net.UDPAddr).AddrPort())
	e := iptables.Endpoint{Addr: listen.Addr(), Port: listen.Port(), Proto: iptables.UDP}
	own := identityOf(t)
	c := New(Config{
		Identity: own, Listen: []iptables.Endpoint{e}, Zones: map[iptables.Endpoint]string{e: "."},
		Progress: func() uint64 { return 0 }, Lost: func() uint64 { return 0 }, Throttled: func() bool { return false },
	})
	if _, _, err := c.Reserve([]netip.Addr{e.Addr}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = server.Close()
		<-done
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	ports := c.pools[e.Addr].lease
	ours := make(chan uint16, 1) // the port that leads to us at the moment
	go func() {
		defer close(done)
		buf := make([]byte, dns.MinMsgSize)
		for {
			n, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			port := <-ours
			ours <- port
			query := new(dns.Msg)
			if from.Port() != port || query.Unpack(buf[:n]) != nil {
				continue
			}
			if answer, err := own.Answer(query, "").Pack(); err == nil {
				_, _ = server.WriteToUDPAddrPort(answer, from)
			}
		}
	}()
	ours <- sockets.UDPPort(ports[0])
	for _, at := range []int{0, leasePool - 1, leasePool - 1, 0, leasePool - 2} {
		<-ours
		ours <- sockets.UDPPort(ports[at])
		// One renewal has to find it within the default lease, of some that the
		// machine may spoil: a try waits for 100 ms only.
		var err error
		for range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			c.Renew(ctx, []netip.Addr{e.Addr}, func(_ netip.Addr, _ time.Time, renewErr error) { err = renewErr })
			cancel()
			if err == nil {
				break
			}
		}
		if err != nil {
			t.Errorf("port %d of %d leads to us, and was not found: %v", at+1, leasePool, err)
		}
	}
}

func TestSteadyLooks(t *testing.T) {
	var c Checker
	a, began := netip.MustParseAddr("10.96.0.10"), time.Unix(1_000_000, 0)
	for _, tc := range []struct{ at, since time.Duration }{
		{0, 0}, {time.Second, 0}, {31 * time.Second, 0}, {80 * time.Second, 80 * time.Second}, {81 * time.Second, 80 * time.Second},
	} {
		if got := c.looked(a, began.Add(tc.at)); got.Sub(began) != tc.since {
			t.Errorf("a look after %s: steady since %s, want %s", tc.at, got.Sub(began), tc.since)
		}
	}
}
