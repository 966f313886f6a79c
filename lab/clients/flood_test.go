//go:build privileged

package clients

import (
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/lab"
)

// sink is a namespace in which a server listens on port 53 of the loopback.
func sink(t *testing.T, listen func(at string) error) (*lab.Namespace, netip.Addr) {
	t.Helper()
	testns.Root(t)
	ns, err := lab.NewNamespace("sink")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	if err := ns.Do(func() error { return listen("127.0.0.1:53") }); err != nil {
		t.Fatal(err)
	}
	return ns, netip.MustParseAddr("127.0.0.1")
}

func TestFloodAsksForNewNames(t *testing.T) {
	t.Parallel()
	var conn net.PacketConn
	ns, target := sink(t, func(at string) (err error) {
		conn, err = net.ListenPacket("udp", at)
		return err
	})
	t.Cleanup(func() { _ = conn.Close() })
	flood := &Flood{From: ns, Target: target, Rate: 2000, Ports: 8}
	if err := flood.Start(); err != nil {
		t.Fatal(err)
	}
	names, ports := map[string]bool{}, map[string]bool{}
	buffer := make([]byte, dns.MinMsgSize)
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	const queries = 200
	for range queries {
		n, from, err := conn.ReadFrom(buffer)
		if err != nil {
			t.Fatal(err)
		}
		query := new(dns.Msg)
		if err := query.Unpack(buffer[:n]); err != nil {
			t.Fatal(err)
		}
		names[query.Question[0].Name], ports[from.String()] = true, true
	}
	sent, err := flood.Stop()
	if err != nil || sent < queries || len(names) != queries || len(ports) != 8 {
		t.Errorf("%d sent, of %d names %d are different, from %d ports, %v", sent, queries, len(names), len(ports), err)
	}
}

func TestDeafConnectionsAreHeldUntilTheServerClosesThem(t *testing.T) {
	t.Parallel()
	var listener net.Listener
	ns, target := sink(t, func(at string) (err error) {
		listener, err = net.Listen("tcp", at)
		return err
	})
	t.Cleanup(func() { _ = listener.Close() })
	var came atomic.Int64
	accepted := make(chan net.Conn, 3)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if n, _ := conn.Read(make([]byte, 100)); n > 0 {
				came.Add(1)
			}
			accepted <- conn
		}
	}()
	deaf, err := NewDeaf(ns, target, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = deaf.Close() }()
	conns := []net.Conn{<-accepted, <-accepted, <-accepted}
	if held := deaf.Held(); held != 3 || came.Load() != 3 {
		t.Errorf("%d held, %d have asked, want 3 and 3", held, came.Load())
	}
	for _, conn := range conns {
		_ = conn.Close()
	}
	for deadline := time.Now().Add(time.Minute); deaf.Held() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d held of connections that were closed", deaf.Held())
		}
	}
}
