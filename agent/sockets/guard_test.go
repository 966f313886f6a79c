package sockets

import (
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/iptables"
)

// server accepts connections and reads from them, as CoreDNS does.
type server struct {
	net.Listener
	mu       sync.Mutex
	open     map[netip.Addr]int
	conns    map[netip.Addr][]net.Conn
	accepted int
}

func serve(t *testing.T) (*server, []iptables.Endpoint) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{Listener: l, open: map[netip.Addr]int{}, conns: map[netip.Addr][]net.Conn{}}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			client := Unmap(conn.RemoteAddr().(*net.TCPAddr).AddrPort()).Addr()
			s.count(client, 1)
			s.mu.Lock()
			s.conns[client] = append(s.conns[client], conn)
			s.mu.Unlock()
			go func() {
				defer s.count(client, -1)
				defer conn.Close()
				buffer := make([]byte, 512)
				for err == nil {
					_, err = conn.Read(buffer)
				}
			}()
		}
	}()
	at := Unmap(l.Addr().(*net.TCPAddr).AddrPort())
	return s, []iptables.Endpoint{{Addr: at.Addr(), Port: at.Port(), Proto: iptables.TCP}}
}

func (s *server) count(client netip.Addr, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[client] += n
	s.accepted += max(n, 0)
}

// closeAll closes all connections of a client but the last ones, and those that are accepted
// meanwhile.
func (s *server) closeAll(client string, but int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	conns := s.conns[netip.MustParseAddr(client)]
	for _, conn := range conns[:len(conns)-but] {
		_ = conn.Close()
	}
}

func (s *server) has(client string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[netip.MustParseAddr(client)]
}

// dial returns nil if the kernel drops the request.
func (s *server) dial(t *testing.T, from string) net.Conn {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 200 * time.Millisecond}
	conn, err := d.Dial("tcp4", s.Addr().String())
	if err != nil {
		return nil
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

const greedy, modest = "127.0.0.2", "127.0.0.3"

// A client loses the connections that are too many, those first that have been silent for
// longest, and may open no more until it has closed some. Other clients keep theirs, and
// may open more.
func TestGuard(t *testing.T) {
	s, endpoints := serve(t)
	var mu sync.Mutex
	reset := map[string]int{}
	g := &Guard{PerClient: 10, All: 1000, Reset: func(client netip.Addr) {
		mu.Lock()
		defer mu.Unlock()
		reset[client.String()]++
	}}
	other, busy := s.dial(t, modest), s.dial(t, greedy)
	for range 20 {
		s.dial(t, greedy)
		time.Sleep(2 * time.Millisecond) // the kernel counts silence in milliseconds
		if _, err := busy.Write([]byte("query")); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second time after a reload
		if err := g.Follow(endpoints); err != nil {
			t.Fatal(err)
		}
	}
	defer g.Close()
	go s.dial(t, greedy) // one that the kernel tells of
	refused := func() bool { return s.dial(t, greedy) == nil && s.has(greedy) <= 10 }
	testwait.True(t, time.Minute, "at most ten connections stay, and no more are accepted", refused)
	for name, conn := range map[string]net.Conn{"another client's": other, "the busy": busy, "another client's new": s.dial(t, modest)} {
		if conn == nil {
			t.Fatalf("%s connection was refused", name)
		}
		if _, err := conn.Write([]byte("query")); err != nil {
			t.Errorf("%s connection: %v", name, err)
		}
	}
	mu.Lock()
	if reset[modest] > 0 || reset[greedy] < 11 {
		t.Errorf("reset: %v", reset)
	}
	mu.Unlock()
	s.closeAll(greedy, 0)
	testwait.True(t, time.Minute, "the client may connect again", func() bool { return s.dial(t, greedy) != nil })
}

// The bound of all connections is divided among the clients.
func TestGuardOfAll(t *testing.T) {
	s, endpoints := serve(t)
	g := &Guard{PerClient: 50, All: 20}
	if err := g.Follow(endpoints); err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for range 4 {
		s.dial(t, modest)
	}
	for range 40 {
		go s.dial(t, greedy)
	}
	// Together they have no more than they may, or each no more than its part. A client may
	// open more when it has three quarters of its part.
	testwait.True(t, time.Minute, "some connections are closed", func() bool {
		s.dial(t, greedy)
		s.mu.Lock()
		defer s.mu.Unlock()
		n := s.open[netip.MustParseAddr(greedy)]
		return s.accepted > 20 && n <= 16 && n > 10*3/4
	})
	if n := s.has(modest); n != 4 {
		t.Errorf("the other client has %d connections left", n)
	}
}

// A guard that is closed bounds nothing, nor does one without bounds.
func TestClosedGuard(t *testing.T) {
	s, endpoints := serve(t)
	g := &Guard{PerClient: 1, All: 1, Reset: func(netip.Addr) { t.Error("a connection was reset") }}
	if err := g.Follow(endpoints); err != nil {
		t.Fatal(err)
	}
	g.Close()
	g.Close()
	if err := new(Guard).Follow(endpoints); err != nil {
		t.Error(err)
	}
	for range 5 {
		s.dial(t, greedy)
	}
	testwait.True(t, time.Minute, "the connections are accepted", func() bool { return s.has(greedy) == 5 })
}

// A client that had enough may connect again when the guard is closed, or follows other
// listeners: the listener stays when a reload removes the guard alone.
func TestAfterTheGuardNobodyIsRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(t *testing.T, g *Guard)
	}{
		{"closed", func(_ *testing.T, g *Guard) { g.Close() }},
		{"other listeners", func(t *testing.T, g *Guard) {
			if _, others := serve(t); g.Follow(others) != nil {
				t.Error("others are not followed")
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, endpoints := serve(t)
			g := &Guard{PerClient: 5, All: 1000}
			if err := g.Follow(endpoints); err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			testwait.True(t, time.Minute, "the client may open no more", func() bool { return s.dial(t, greedy) == nil })
			tc.end(t, g)
			for range 10 {
				if s.dial(t, greedy) == nil {
					t.Fatal("the kernel drops requests after the end of the guard")
				}
			}
		})
	}
}

// Connections from an address at which we listen are not refused: from there our own checks
// come, beside clients of this host.
func TestOwnAddressIsNotRefused(t *testing.T) {
	s, endpoints := serve(t)
	const own = "127.0.0.1"
	g := &Guard{PerClient: 5, All: 1000}
	if err := g.Follow(endpoints); err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for range 4 {
		for range 10 {
			if s.dial(t, own) == nil {
				t.Fatal("a connection was refused")
			}
		}
		testwait.True(t, time.Minute, "those that are too many are closed", func() bool { return s.has(own) <= 5 })
	}
}

// The server accepts the connections of a storm one after the other. The guard does not wait
// for that: those that wait are of the client that has many.
func TestConnectionsThatAreNotAccepted(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := Unmap(l.Addr().(*net.TCPAddr).AddrPort())
	s := &server{Listener: l}
	g := &Guard{PerClient: 10, All: 1000, Reset: func(netip.Addr) { t.Error("a connection was reset") }}
	if err := g.Follow([]iptables.Endpoint{{Addr: at.Addr(), Port: at.Port(), Proto: iptables.TCP}}); err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for range 6 {
		s.dial(t, greedy)
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	testwait.True(t, time.Minute, "the client may open no more", func() bool { return s.dial(t, greedy) == nil })
	if s.dial(t, modest) == nil {
		t.Error("another client's connection was refused")
	}
}

// A guard that waits for the processor need not rest for it.
func TestProcessorTime(t *testing.T) {
	const waits = 200 * time.Millisecond
	if took := processorTime(func() { time.Sleep(waits) }); took > waits/2 {
		t.Errorf("a wait of %s counts as %s", waits, took)
	}
	const works = 5 * time.Millisecond
	if took := processorTime(func() {
		for began := threadTime(); threadTime()-began < works; {
		}
	}); took < works {
		t.Errorf("work of %s counts as %s", works, took)
	}
}
