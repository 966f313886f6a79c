package sockets

import (
	"net"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/iptables"
)

// heldConnection returns a TCP connection that its server keeps open after an answer.
func heldConnection(t *testing.T) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{Listener: l, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetReply(r))
	})}
	go func() { _ = s.ActivateAndServe() }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		_ = s.Shutdown()
	})
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	query(t, conn)
	return conn
}

// query asks over the connection and reads the answer.
func query(t *testing.T, conn net.Conn) {
	t.Helper()
	m := new(dns.Msg).SetQuestion("example.org.", dns.TypeA)
	if err := (&dns.Conn{Conn: conn}).WriteMsg(m); err != nil {
		t.Fatal(err)
	}
	answer, err := (&dns.Conn{Conn: conn}).ReadMsg()
	if err != nil {
		t.Fatal(err)
	}
	if answer.Id != m.Id {
		t.Fatalf("answer %d, want %d", answer.Id, m.Id)
	}
}

func TestConnectionsAreListed(t *testing.T) {
	t.Parallel()
	conn := heldConnection(t)
	server := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	at := func(proto iptables.Proto) []iptables.Endpoint {
		return []iptables.Endpoint{{Addr: server.Addr(), Port: server.Port(), Proto: proto}}
	}
	want := []iptables.Connection{{Client: conn.LocalAddr().(*net.TCPAddr).AddrPort(), Listen: server}}
	if got := Connections(at(iptables.TCP)); !slices.Equal(got, want) {
		t.Errorf("connections %v, want %v", got, want)
	}
	if got := Connections(at(iptables.UDP)); len(got) != 0 {
		t.Errorf("TCP connections %v at an endpoint for UDP", got)
	}
}
