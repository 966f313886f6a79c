package socket

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testport"
	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// A query that causes a panic is CoreDNS's, and the others are answered.
func TestPanicsDoNotEndAReader(t *testing.T) {
	t.Parallel()
	var faults atomic.Int32
	g := open(t, Config{At: testport.Unused(t, "127.0.0.1"), Sockets: 1, Panicked: func(any) { faults.Add(1) }})
	table := NewTable(map[string]*Entry{"\x03org\x00": {Block: cached(t), Zone: "."}, "\x03net\x00": {Block: &Block{Size: 1<<16 - 1}}})
	serve(new(sync.WaitGroup), g.Use(table))
	g.Until(time.Now().Add(time.Hour))
	steered(t, g)
	for _, row := range []struct {
		name string
		want int
	}{{"www.example.org.", dns.RcodeSuccess}, {"www.example.net.", dns.RcodeNameError}, {"www.example.org.", dns.RcodeSuccess}} {
		if got := ask(t, loopback(1), g.At(), row.name); got != row.want {
			t.Errorf("%s is answered with %d, want %d", row.name, got, row.want)
		}
	}
	if n := faults.Load(); n != 1 {
		t.Errorf("%d panics are told of", n)
	}
}

// Other fast paths get the answers that are given here.
func TestHitsAreTold(t *testing.T) {
	t.Parallel()
	told := make(chan string, 10)
	b := cached(t)
	b.Hit = func(key wire.Key) { told <- string(key.Name()) }
	g := started(t, "127.0.0.1", 1)
	serve(new(sync.WaitGroup), g.Use(everything(b)))
	g.Until(time.Now().Add(time.Hour))
	steered(t, g)
	for _, name := range []string{"no.example.org.", "WWW.example.org."} {
		ask(t, loopback(1), g.At(), name)
	}
	if name := <-told; name != "\x03www\x07example\x03org\x00" {
		t.Errorf("told of %q", name)
	}
	if len(told) > 0 {
		t.Errorf("told of %q, too", <-told)
	}
}

// The readers keep nothing of a table that is not used any more: its caches are large.
func TestOldTablesAreForgotten(t *testing.T) {
	s, fd := loaded(t)
	testwait.True(t, 5*time.Second, "queries come to our sockets", s.group.Steered)
	s.batchOf(fd, batchSize)
	table := everything(cached(t))
	serve(new(sync.WaitGroup), s.group.Use(table))
	s.batchOf(fd, 1)
	used := map[*Entry]bool{nil: true}
	for _, e := range table.entries {
		used[e] = true
	}
	for c := range s.counters {
		if !used[c.entry] {
			t.Error("a counter of the table before is left")
		}
	}
	for _, h := range s.hits {
		if !used[h.entry] {
			t.Fatal("a hit of the table before is left")
		}
	}
}

// A query that was on its way to a conn when that ended is not lost.
func TestQueriesOnTheWayToAConnThatEnds(t *testing.T) {
	t.Parallel()
	g := started(t, "127.0.0.1", 1)
	s := &socket{group: g}
	client := netip.AddrPortFrom(loopback(1), 4000)
	before, after := newConn(s), newConn(s)
	s.to.Store(after)
	_ = before.Close()
	if _, _, err := before.ReadFrom(make([]byte, maxQuery)); err == nil {
		t.Fatal("a query waits in the conn that ended")
	}
	// The reader has loaded the one before.
	if !s.hand(before, []byte("query"), client) {
		t.Fatal("no room")
	}
	if len(before.queue) != 0 || len(after.queue) != 1 {
		t.Fatalf("%d queries wait in the conn that ended, %d in the next", len(before.queue), len(after.queue))
	}
	b := make([]byte, maxQuery)
	if n, from, err := after.ReadFrom(b); err != nil || string(b[:n]) != "query" || from.String() != client.String() {
		t.Errorf("read %q from %v: %v", b[:n], from, err)
	}
}

// The reply to a client that cannot be reached is lost, and those of others are not.
func TestClientsThatCannotBeReached(t *testing.T) {
	for _, row := range []struct {
		name string
		addr [4]byte
		port uint16
	}{
		{"port 0", [4]byte{127, 0, 0, 1}, 0},
		{"broadcast", [4]byte{255, 255, 255, 255}, 4000},
		{"no host", [4]byte{0, 0, 0, 0}, 0},
		{"reserved", [4]byte{240, 0, 0, 1}, 4000},
	} {
		for _, at := range [][]int{{0}, {7}, {batchSize - 1}, {0, 1, 2, batchSize - 2}} {
			s, fd := loaded(t)
			sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = sink.Close() })
			for i := range batchSize {
				s.address(i, [4]byte{127, 0, 0, 1}, sink.LocalAddr().(*net.UDPAddr).AddrPort().Port())
			}
			for _, i := range at {
				s.address(i, row.addr, row.port)
			}
			testwait.True(t, 5*time.Second, "queries come to our sockets", s.group.Steered)
			s.batchOf(fd, batchSize)
			got := 0
			for b := make([]byte, 512); ; got++ {
				_ = sink.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				if _, err := sink.Read(b); err != nil {
					break
				}
			}
			if want := batchSize - len(at); got != want {
				t.Errorf("%s at %v: %d replies, want %d", row.name, at, got, want)
			}
		}
	}
}

// Packets that are no queries, or no whole ones, end no reader.
func TestPacketsThatAreNoQueries(t *testing.T) {
	t.Parallel()
	g := started(t, "127.0.0.1", 1)
	g.Until(time.Now().Add(time.Hour))
	steered(t, g)
	conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback(1), 0)), net.UDPAddrFromAddrPort(g.At()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	query, err := new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(query) {
		if _, err := conn.Write(query[:n]); err != nil {
			t.Fatal(err)
		}
	}
	response := slices.Clone(query)
	response[2] |= 0x80
	for _, packet := range [][]byte{response, append(slices.Clone(query), make([]byte, 2000)...), bytes.Repeat([]byte{0xff}, 600), g.probe[:15]} {
		if _, err := conn.Write(packet); err != nil {
			t.Fatal(err)
		}
	}
	if got := ask(t, loopback(1), g.At(), "www.example.org."); got != dns.RcodeSuccess {
		t.Errorf("answered with %d", got)
	}
}
