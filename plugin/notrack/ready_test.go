package notrack

import (
	"context"
	"net"
	"testing"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/agent"
	"github.com/trackless-dns/trackless/agent/checks"
	"github.com/trackless-dns/trackless/agent/recorder"
	"github.com/trackless-dns/trackless/iptables"
)

// overTCP is a Recorder of a query that came over TCP.
type overTCP struct{ recorder.Recorder }

func (*overTCP) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 53} }
func (*overTCP) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 4711} }

// A server may answer a check over TCP before its UDP sockets are there. They get room for
// queries all the same.
func TestListenersAreMadeReadyForEachProtocol(t *testing.T) {
	config, err := newConfiguration()
	if err != nil {
		t.Fatal(err)
	}
	config.agent = agent.New(agent.Config{Log: log})
	n := &NoTrack{config: config, block: &dnsserver.Config{}}
	ctx := context.WithValue(t.Context(), dnsserver.Key{}, new(dnsserver.Server))
	ask := func(w dns.ResponseWriter) {
		t.Helper()
		if _, err := n.answerProbe(ctx, w, config.identity.Query(checks.CheckLabel, "."), checks.Probe{Check: true, Own: true}); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	size := func() (n int) {
		raw, err := conn.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { n, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF) })
		}
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if err := conn.SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	ask(&overTCP{}) // the socket is none of ours yet
	small := size()
	at := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	config.plan.Listen = []iptables.Endpoint{{Addr: at.Addr(), Port: at.Port(), Proto: iptables.UDP}}
	ask(&overTCP{})
	if got := size(); got != small {
		t.Errorf("a buffer of %d bytes after a second check over TCP, it was %d", got, small)
	}
	ask(&recorder.Recorder{})
	if got := size(); got <= small {
		t.Errorf("a buffer of %d bytes after the first check over UDP, it was %d", got, small)
	}
}
