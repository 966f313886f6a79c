//go:build privileged

package generator

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testns"
)

// serve answers over UDP as the function says, until the test ends.
func serve(t *testing.T, answer func(conn *net.UDPConn, query []byte, from netip.AddrPort)) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			query := make([]byte, 512)
			n, from, err := conn.ReadFromUDPAddrPort(query)
			if err != nil {
				return
			}
			query[2] |= 0x80 // QR
			answer(conn, query[:n], from)
		}
	}()
	t.Cleanup(func() { _ = conn.Close(); <-done })
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func echo(conn *net.UDPConn, query []byte, from netip.AddrPort) {
	_, _ = conn.WriteToUDPAddrPort(query, from)
}

func TestBurstsOverLoopback(t *testing.T) {
	testns.Enter(t)
	server := serve(t, echo)
	r, err := Run(Options{Server: server, Names: 100, Last: 100 * time.Millisecond, Burst: 12, Sockets: 4, Any: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.Sent < 4*12 || r.Answered != r.Sent || r.Wrong != 0 || r.CPU <= 0 || r.Took < 100*time.Millisecond {
		t.Errorf("an echo over the loopback device: %+v; want all answered", r)
	}
}

// TestBurstsWithLoss has a server that answers every other query, another one wrongly.
func TestBurstsWithLoss(t *testing.T) {
	testns.Enter(t)
	n := 0
	server := serve(t, func(conn *net.UDPConn, query []byte, from netip.AddrPort) {
		if n++; n%4 == 1 {
			query[len(query)-1]++ // another class
		}
		if n%2 == 1 {
			echo(conn, query, from)
		}
	})
	r, err := Run(Options{Server: server, Names: 7, Last: time.Millisecond, Burst: 4, Sockets: 2, Any: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.Sent%4 != 0 || r.Answered != r.Sent/4 || r.Wrong != r.Sent/4 {
		t.Errorf("of four queries one should be answered, one answered wrongly, and two lost: %+v", r)
	}
}

func TestRateOverLoopback(t *testing.T) {
	testns.Enter(t)
	server := serve(t, echo)
	r, err := Run(Options{Server: server, Names: 100, Last: 200 * time.Millisecond, Rate: 2000, Any: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.Sent != 400 || r.Answered != 400 || r.Wrong != 0 || r.P50 <= 0 || r.P99 < r.P50 {
		t.Errorf("an echo over the loopback device: %+v; want 400 queries, all answered", r)
	}
}

// TestAStallOfTheServerIsNotOmitted has a server that holds its answers back until half
// of the queries have come, which are sent all the same.
func TestAStallOfTheServerIsNotOmitted(t *testing.T) {
	testns.Enter(t)
	const queries, rate = 200, 1000
	var held [][]byte
	came := 0
	server := serve(t, func(conn *net.UDPConn, query []byte, from netip.AddrPort) {
		held = append(held, query)
		if came++; came < queries/2 {
			return
		}
		for _, q := range held {
			echo(conn, q, from)
		}
		held = nil
	})
	r, err := Run(Options{Server: server, Names: 10, Last: queries * time.Second / rate, Rate: rate, Any: true})
	if err != nil {
		t.Fatal(err)
	}
	// The first of them waited for 99 intervals and the last for none.
	if r.Answered != queries || r.P99 < 97*time.Second/rate {
		t.Errorf("the server stalled for %d ms: %+v", queries/2*1000/rate, r)
	}
}

func TestNobodyAnswersAtARate(t *testing.T) {
	testns.Enter(t)
	server := serve(t, func(*net.UDPConn, []byte, netip.AddrPort) {})
	r, err := Run(Options{Server: server, Names: 10, Last: 10 * time.Millisecond, Rate: 1000, Any: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.Sent != 10 || r.Answered != 0 || r.P50 < patience || r.P99 < r.P50 {
		t.Errorf("nobody answers: %+v; want every query to count as one that took at least %s", r, patience)
	}
}
