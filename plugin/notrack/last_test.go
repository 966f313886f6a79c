package notrack

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/agent/tuple"
	"github.com/trackless-dns/trackless/iptables"
)

// releasedServer answers over TCP as a process that is about to stop. It calls before in
// front of each answer.
func releasedServer(t *testing.T, rcode int, before func()) net.Conn {
	t.Helper()
	n := &NoTrack{
		block:  &dnsserver.Config{},
		config: &configuration{agent: process, block: block{zones: map[iptables.Endpoint]string{}}},
		Next: plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			before()
			if !plugin.ClientWrite(rcode) {
				return rcode, nil
			}
			return rcode, w.WriteMsg(new(dns.Msg).SetReply(r))
		}),
	}
	n.config.leaving.Store(true)
	return connectionTo(t, func(w dns.ResponseWriter, r *dns.Msg) {
		client, server, _ := tuple.Of(w)
		n.config.zones[iptables.Endpoint{Addr: server.Addr(), Port: server.Port(), Proto: iptables.TCP}] = "."
		if rcode, err := n.serveTCP(t.Context(), w, r, client, server); !plugin.ClientWrite(rcode) {
			t.Errorf("%d %v: CoreDNS's server would answer once more", rcode, err)
		}
	})
}

// connectionTo returns a TCP connection to a DNS server.
func connectionTo(t *testing.T, handler dns.HandlerFunc) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{Listener: l, Handler: handler}
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
	return conn
}

func ask(t *testing.T, conn net.Conn, id uint16) {
	t.Helper()
	query := new(dns.Msg).SetQuestion("example.org.", dns.TypeA)
	query.Id = id
	if err := (&dns.Conn{Conn: conn}).WriteMsg(query); err != nil {
		t.Fatal(err)
	}
}

func answered(t *testing.T, conn net.Conn, id uint16) *dns.Msg {
	t.Helper()
	answer, err := (&dns.Conn{Conn: conn}).ReadMsg()
	if err != nil {
		t.Fatalf("answer %d: %v", id, err)
	}
	if answer.Id != id {
		t.Fatalf("answer %d, want %d", answer.Id, id)
	}
	return answer
}

// hungUp reports whether the server's FIN has arrived.
func hungUp(t *testing.T, conn net.Conn) (yes bool) {
	t.Helper()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		events := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		_, err = unix.Poll(events, 0)
		yes = events[0].Revents&unix.POLLRDHUP != 0
	}); err != nil {
		t.Fatal(err)
	}
	return yes
}

func TestLastAnswerBringsTheEndOfTheConnection(t *testing.T) {
	t.Parallel()
	conn := releasedServer(t, dns.RcodeSuccess, func() {})
	ask(t, conn, 1)
	answered(t, conn, 1)
	if !hungUp(t, conn) {
		t.Error("the client has the answer, but no FIN")
	}
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("after the answer: %d bytes, %v; want an orderly end", n, err)
	}
}

func TestQueriesThatWaitInTheConnectionAreAnswered(t *testing.T) {
	t.Parallel()
	var conn net.Conn
	second := make(chan struct{})
	asked := false
	conn = releasedServer(t, dns.RcodeSuccess, func() {
		if !asked {
			asked = true
			<-second // the second query arrives while the first is answered
		}
	})
	ask(t, conn, 1)
	ask(t, conn, 2)
	close(second)
	answered(t, conn, 1)
	answered(t, conn, 2)
	if !hungUp(t, conn) {
		t.Error("not closed after the last answer")
	}
}

func TestErrorBringsTheEndOfTheConnection(t *testing.T) {
	t.Parallel()
	conn := releasedServer(t, dns.RcodeServerFailure, func() {})
	ask(t, conn, 1)
	if rcode := answered(t, conn, 1).Rcode; rcode != dns.RcodeServerFailure {
		t.Errorf("rcode %s", dns.RcodeToString[rcode])
	}
	if !hungUp(t, conn) {
		t.Error("not closed after an answer that no plugin wrote")
	}
}
