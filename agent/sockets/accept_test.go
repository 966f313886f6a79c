package sockets

import (
	"net"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/iptables"
)

func TestWaiting(t *testing.T) {
	var l Listeners
	listen, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listen.Close()
	at := Unmap(listen.Addr().(*net.TCPAddr).AddrPort())
	e := iptables.Endpoint{Addr: at.Addr(), Port: at.Port(), Proto: iptables.TCP}
	if l.Waiting(e) {
		t.Error("nobody has connected, and somebody waits")
	}
	conn, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	testwait.True(t, 10*time.Second, "the connection waits", func() bool { return l.Waiting(e) })
	accepted, err := listen.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if l.Waiting(e) {
		t.Error("it was accepted, and waits")
	}
	// Its descriptor may be that of anything by now.
	if err := listen.Close(); err != nil {
		t.Fatal(err)
	}
	if l.Waiting(e) {
		t.Error("nobody listens, and somebody waits")
	}
}
