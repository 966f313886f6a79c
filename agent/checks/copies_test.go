package checks

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/iptables"
)

// A listener with a full buffer drops nearly everything and answers the rest.
func TestChecksOfABusyListener(t *testing.T) {
	for _, tc := range []struct {
		name     string
		drops    uint64 // packets before one is answered
		progress bool   // queries of others are answered meanwhile
		room     bool   // no socket drops anything, it only takes long
		answered bool
		packets  uint64 // at most
	}{
		{"it answers at once", 0, true, false, true, 1},
		{"it drops most of what comes", 40, true, false, true, 100},
		{"it drops most of what comes, and answers nobody", 40, false, false, false, 1},
		{"it answers others, and drops nothing", 40, true, true, false, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			local := netip.MustParseAddr("127.0.0.1")
			server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0)))
			if err != nil {
				t.Fatal(err)
			}
			own := identityOf(t)
			e := iptables.Endpoint{Addr: local, Port: sockets.UDPPort(server), Proto: iptables.UDP}
			var came, steps atomic.Uint64
			done := make(chan struct{})
			go func() {
				defer close(done)
				buf := make([]byte, dns.MinMsgSize)
				for {
					n, from, err := server.ReadFromUDPAddrPort(buf)
					if err != nil {
						return
					}
					query := new(dns.Msg)
					if came.Add(1) <= tc.drops || query.Unpack(buf[:n]) != nil {
						continue
					}
					if answer, err := own.Answer(query, "one").Pack(); err == nil {
						_, _ = server.WriteToUDPAddrPort(answer, from)
					}
				}
			}()
			t.Cleanup(func() {
				_ = server.Close()
				<-done
			})
			c := New(Config{
				Identity: own, Zones: map[iptables.Endpoint]string{e: "."},
				Progress: func() uint64 {
					if tc.progress {
						return steps.Add(1)
					}
					return 0
				},
				Lost: func() uint64 {
					if tc.room {
						return 0
					}
					return steps.Add(1)
				},
			})
			conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0)))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			if err := stamp(conn); err != nil {
				t.Fatal(err)
			}
			// Many times longer than the copies need.
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			if tc.answered {
				ctx, cancel = context.WithTimeout(t.Context(), 20*time.Second)
			}
			defer cancel()
			began := time.Now()
			x, err := c.exchange(e, conn, CheckLabel)
			if err != nil {
				t.Fatal(err)
			}
			socket, at, err := x.run(ctx)
			if answered := err == nil && socket == "one"; answered != tc.answered {
				t.Errorf("socket %q, %v", socket, err)
			}
			if tc.answered && (at.Before(began.Add(-time.Second)) || at.After(time.Now())) {
				t.Errorf("answered %s after the question", at.Sub(began))
			}
			if tc.drops > 0 && came.Load() > tc.packets {
				t.Errorf("%d packets, at most %d are called for", came.Load(), tc.packets)
			}
		})
	}
}

// What the kernel says of a packet that has waited for us in the buffer.
func TestReceivedAt(t *testing.T) {
	listen := func() *net.UDPConn {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	conn, other := listen(), listen()
	if err := stamp(conn); err != nil {
		t.Fatal(err)
	}
	if _, err := other.WriteToUDPAddrPort([]byte("late"), conn.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
		t.Fatal(err)
	}
	const waited = 100 * time.Millisecond
	for began := time.Now(); time.Since(began) < waited; {
		time.Sleep(waited / 10)
	}
	control := make([]byte, 64)
	_, n, _, _, err := conn.ReadMsgUDPAddrPort(make([]byte, 16), control)
	if err != nil {
		t.Fatal(err)
	}
	if age := time.Since(receivedAt(control[:n])); age < waited*9/10 {
		t.Errorf("received %s ago, want %s or more", age, waited)
	}
	if age := time.Since(receivedAt(nil)); age > waited/2 {
		t.Errorf("without a word of the kernel: %s ago, want now", age)
	}
}
