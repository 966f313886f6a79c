package checks

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

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

// Ports may lead to an instance that hangs. Ours answers all the same.
func TestCheckBesideOneThatHangs(t *testing.T) {
	t.Parallel()
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return sockets.Control(raw, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	}}
	open := func(at string) *net.UDPConn {
		conn, err := lc.ListenPacket(t.Context(), "udp", at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn.(*net.UDPConn)
	}
	server := open("127.0.0.1:0")
	open(server.LocalAddr().String()) // nobody reads it
	own := identityOf(t)
	go func() {
		buf := make([]byte, dns.MinMsgSize)
		for {
			length, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			query := new(dns.Msg)
			if query.Unpack(buf[:length]) != nil {
				continue
			}
			if answer, err := own.Answer(query, "one").Pack(); err == nil {
				_, _ = server.WriteToUDPAddrPort(answer, from)
			}
		}
	}()
	listen := sockets.Unmap(server.LocalAddr().(*net.UDPAddr).AddrPort())
	e := iptables.Endpoint{Addr: listen.Addr(), Port: listen.Port(), Proto: iptables.UDP}
	for n, want := range map[int]error{1: nil, 2: context.DeadlineExceeded} {
		c := New(Config{
			Identity: own, Listen: []iptables.Endpoint{e}, Zones: map[iptables.Endpoint]string{e: "."}, Sockets: n,
			Progress: func() uint64 { return 0 }, Lost: func() uint64 { return 0 }, Throttled: func() bool { return false },
		})
		if _, _, err := c.Reserve([]netip.Addr{e.Addr}); err != nil {
			t.Fatal(err)
		}
		// Of 16 ports all lead to one of the two once in 32,768 times.
		if err := c.Check(t.Context(), e); !errors.Is(err, want) {
			t.Errorf("%d sockets of ours: %v, want %v", n, err, want)
		}
		if err := c.Effect(t.Context(), e.Addr); err != nil {
			t.Errorf("the effect: %v", err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What does not answer is asked once if it must be ours, so that the leases of other addresses
// need not wait for it.
func TestSilence(t *testing.T) {
	t.Parallel()
	for shared, want := range map[bool]int{false: 1, true: poolSize} {
		server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		listen := server.LocalAddr().(*net.UDPAddr).AddrPort()
		e := iptables.Endpoint{Addr: listen.Addr(), Port: listen.Port(), Proto: iptables.UDP}
		c := New(Config{
			Identity: identityOf(t), Listen: []iptables.Endpoint{e}, Zones: map[iptables.Endpoint]string{e: "."}, Sockets: 1,
			Shared:   func(iptables.Endpoint) bool { return shared },
			Progress: func() uint64 { return 0 }, Lost: func() uint64 { return 0 }, Throttled: func() bool { return false },
		})
		if _, _, err := c.Reserve([]netip.Addr{e.Addr}); err != nil {
			t.Fatal(err)
		}
		if err := c.Check(t.Context(), e); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		ports := map[netip.AddrPort]bool{}
		for len(ports) < want {
			_, from, err := server.ReadFromUDPAddrPort(make([]byte, dns.MinMsgSize))
			if err != nil {
				t.Fatal(err)
			}
			ports[from] = true
		}
		if err := server.SetReadDeadline(longAgo); err != nil {
			t.Fatal(err)
		}
		if _, _, err := server.ReadFromUDPAddrPort(make([]byte, dns.MinMsgSize)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("shared %t: more than %d checks", shared, want)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}
