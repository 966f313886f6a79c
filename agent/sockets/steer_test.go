package sockets

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testport"
	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/iptables"
)

// TestPlace has a row for each way in which a group changes.
func TestPlace(t *testing.T) {
	for _, tc := range []struct {
		name  string
		steps [][2][]uint64 // ours, all
		first int
	}{
		{"alone", [][2][]uint64{{{1}, {1}}}, 0},
		{"one came later", [][2][]uint64{{{1}, {1}}, {{1}, {2, 1}}}, 0},
		{"one came before", [][2][]uint64{{{1, 2}, {1, 2, 3}}}, 1},
		{"a later one went", [][2][]uint64{{{1}, {1, 3}}, {{1}, {1, 3, 4}}, {{1}, {1, 3}}}, 1},
		{"one of two before went", [][2][]uint64{{{1}, {1, 3, 4}}, {{1}, {1, 4}}}, -1},
		{"all went", [][2][]uint64{{{1}, {1, 3, 4}}, {{1}, {1, 4}}, {{1}, {1}}}, 0},
		{"ours changed beside others", [][2][]uint64{{{1}, {1}}, {{2}, {2, 3}}}, -1},
		{"ours changed", [][2][]uint64{{{1}, {1}}, {{2, 4}, {2, 4}}}, 0},
	} {
		var p place
		for _, step := range tc.steps {
			p.seen(step[0], step[1])
		}
		if p.first != tc.first {
			t.Errorf("%s: first %d, want %d", tc.name, p.first, tc.first)
		}
	}
	p := place{first: 1, own: []uint64{7, 8}, all: 4}
	if !slices.Equal(p.indexes(), []int{1, 2}) || !slices.Equal(p.others(), []int{0, 3}) {
		t.Errorf("indexes %v, others %v", p.indexes(), p.others())
	}
}

// side has the sockets of one instance.
type side struct {
	udp      *net.UDPConn
	tcp      *net.TCPListener
	steering Steering
	ours     bool
	others   bool
}

// openSide opens sockets at an address, which others may share.
func openSide(t *testing.T, at netip.AddrPort) *side {
	t.Helper()
	s := &side{}
	var fds []int
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return Control(raw, func(fd int) error {
			fds = append(fds, fd)
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		})
	}}
	lc.SetMultipathTCP(false)
	listener, err := lc.Listen(context.Background(), "tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	s.tcp = listener.(*net.TCPListener)
	conn, err := lc.ListenPacket(context.Background(), "udp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s.udp = conn.(*net.UDPConn)
	s.steering = Steering{
		Log: testLog{t}, fds: func() []int { return fds }, Elsewhere: func(netip.AddrPort) bool { return false },
		Serves: func() func(netip.Addr) (bool, bool) {
			return func(netip.Addr) (bool, bool) { return s.ours, s.others }
		},
	}
	t.Cleanup(func() {
		_ = s.udp.Close()
		_ = s.tcp.Close()
		s.steering.Release()
	})
	return s
}

// endpointsAt are the listen endpoints at an address.
func endpointsAt(at netip.AddrPort) []iptables.Endpoint {
	return []iptables.Endpoint{{Addr: at.Addr(), Port: at.Port(), Proto: iptables.UDP}, {Addr: at.Addr(), Port: at.Port(), Proto: iptables.TCP}}
}

func (s *side) at() netip.AddrPort { return s.tcp.Addr().(*net.TCPAddr).AddrPort() }

type testLog struct{ testing.TB }

func (l testLog) Debugf(f string, a ...any)   { l.Logf(f, a...) }
func (l testLog) Infof(f string, a ...any)    { l.Logf(f, a...) }
func (l testLog) Warningf(f string, a ...any) { l.Errorf(f, a...) }
func (l testLog) Errorf(f string, a ...any)   { l.TB.Errorf(f, a...) }

// got returns how many packets and connections wait, and takes them.
func (s *side) got(t *testing.T) (packets, connections int) {
	t.Helper()
	for {
		waiting := false
		raw, err := s.udp.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := Control(raw, func(fd int) error { waiting = unread(fd) > 0; return nil }); err != nil {
			t.Fatal(err)
		}
		if !waiting {
			break
		}
		if _, err := s.udp.Read(make([]byte, 16)); err != nil {
			t.Fatal(err)
		}
		packets++
	}
	for {
		waiting := false
		raw, err := s.tcp.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := Control(raw, func(fd int) error {
			info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			waiting = err == nil && info.Unacked > 0
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if !waiting {
			return packets, connections
		}
		c, err := s.tcp.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		connections++
	}
}

// each is how many packets and connections a test sends at a time. By chance all would come
// to one of two sockets once in billions of times.
const each = 32

// sendAll sends from clients with addresses of their own, or from the listen address.
func sendAll(t *testing.T, at netip.AddrPort, from func(i int) netip.Addr) {
	t.Helper()
	for i := range each {
		local := netip.AddrPortFrom(from(i), 0)
		packet, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(local), net.UDPAddrFromAddrPort(at))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := packet.Write([]byte("query")); err != nil {
			t.Fatal(err)
		}
		_ = packet.Close()
		connection, err := net.DialTCP("tcp", net.TCPAddrFromAddrPort(local), net.TCPAddrFromAddrPort(at))
		if err != nil {
			t.Fatal(err)
		}
		_ = connection.Close()
	}
}

func client(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 1, byte(1 + i)}) }

// TestSteering plays a replacement: the successor gets nothing of clients before the other
// leaves, and all from then on.
func TestSteering(t *testing.T) {
	old := openSide(t, testport.Unused(t, "127.0.0.1"))
	at := old.at()
	listen := endpointsAt(at)
	expect := func(what string, s *side, packets, connections int) {
		t.Helper()
		if p, c := s.got(t); p != packets || c != connections {
			t.Errorf("%s: %d packets and %d connections, want %d and %d", what, p, c, packets, connections)
		}
	}
	old.ours = true
	old.steering.Look(listen)

	killed := openSide(t, at)
	killed.ours, killed.others = true, true
	killed.steering.Look(listen)
	sendAll(t, at, client)
	expect("the predecessor", old, each, each)
	expect("a successor", killed, 0, 0)
	_ = killed.udp.Close()
	_ = killed.tcp.Close()
	sendAll(t, at, client)
	expect("the predecessor of a dead successor", old, each, each)

	next := openSide(t, at)
	next.ours, next.others = true, true
	next.steering.Look(listen)
	// Our own checks find both.
	sendAll(t, at, func(int) netip.Addr { return at.Addr() })
	if p, c := next.got(t); p == 0 || c == 0 || p == each || c == each {
		t.Errorf("%d and %d of %d checks came to the successor", p, c, each)
	}
	old.got(t)

	// The other hangs.
	next.others = false
	next.steering.Look(listen)
	sendAll(t, at, client)
	expect("one that hangs", old, 0, 0)
	expect("beside one that hangs", next, each, each)
	next.others, old.others = true, true
	old.steering.Look(listen) // it goes on, but does not take them back
	sendAll(t, at, client)
	expect("one that went on", old, 0, 0)
	expect("beside it", next, each, each)
}

// Sockets at the wildcard address get what is sent to the listen address: clients stay with
// the predecessor, and checks of the successor find it.
func TestSteeringAtTheWildcardAddress(t *testing.T) {
	for _, tc := range []struct {
		wildcard, listen string
		client           func(i int) netip.Addr
	}{
		{"0.0.0.0", "127.0.0.1", client},
		{"::", "127.0.0.1", client},
		{"::", "::1", nil},
	} {
		t.Run(tc.wildcard+" "+tc.listen, func(t *testing.T) {
			old := openSide(t, testport.Unused(t, tc.wildcard))
			at := netip.AddrPortFrom(netip.MustParseAddr(tc.listen), old.at().Port())
			listen := endpointsAt(at)
			old.ours = true
			old.steering.Look(listen)
			next := openSide(t, old.at())
			next.ours, next.others = true, true
			next.steering.Look(listen)
			if tc.client != nil {
				sendAll(t, at, tc.client)
				if p, c := old.got(t); p != each || c != each {
					t.Errorf("%d packets and %d connections came to the predecessor, want %d", p, c, each)
				}
			}
			sendAll(t, at, func(int) netip.Addr { return at.Addr() })
			if p, c := next.got(t); p == 0 || c == 0 || p == each || c == each {
				t.Errorf("%d and %d of %d checks came to the successor", p, c, each)
			}
		})
	}
}

// One that hung and is replaced within a moment leaves a program with indexes of sockets that
// are another's by now.
func TestSteeringLosesItsPlace(t *testing.T) {
	hung := openSide(t, testport.Unused(t, "127.0.0.1"))
	at := hung.at()
	listen := endpointsAt(at)
	ours := openSide(t, at)
	ours.ours = true
	ours.steering.Look(listen)
	_ = hung.udp.Close()
	_ = hung.tcp.Close()
	silent := openSide(t, at)
	ours.steering.Look(listen)
	sendAll(t, at, client)
	if p, c := ours.got(t); p == 0 || c == 0 {
		t.Errorf("%d packets and %d connections came to the one that serves", p, c)
	}
	silent.got(t)
}

// A reload takes the sockets for cached answers away while a successor does not serve yet: it
// is not known which of them came first.
func TestSteeringBeginsLate(t *testing.T) {
	old := openSide(t, testport.Unused(t, "127.0.0.1"))
	at := old.at()
	listen := endpointsAt(at)
	elsewhere := true
	old.steering.Elsewhere = func(netip.AddrPort) bool { return elsewhere }
	old.ours = true
	old.steering.Look(listen)
	next := openSide(t, at)
	elsewhere = false
	old.steering.Look(listen)
	sendAll(t, at, client)
	if p, c := old.got(t); p == 0 || c != each {
		t.Errorf("%d packets and %d connections came to the one that serves", p, c)
	}
	next.got(t)
}

// TestSteeringLeaves: what waits is answered, and all else comes to the successor.
func TestSteeringLeaves(t *testing.T) {
	old := openSide(t, testport.Unused(t, "127.0.0.1"))
	at := old.at()
	listen := endpointsAt(at)
	old.ours = true
	old.steering.Look(listen)
	next := openSide(t, at)
	next.ours, next.others = true, true
	next.steering.Look(listen)
	sendAll(t, at, client)
	if err := yieldSockets(old.steering.fds(), listen); err != nil {
		t.Fatal(err)
	}
	if err := old.steering.Leave(); err != nil {
		t.Fatal(err)
	}
	sendAll(t, at, client)
	old.steering.Look(listen)
	sendAll(t, at, client)
	if p, c := next.got(t); p != 2*each || c != 2*each {
		t.Errorf("%d packets and %d connections came to the successor, want %d", p, c, 2*each)
	}
	if p, c := old.got(t); p != each || c != each {
		t.Errorf("%d packets and %d connections wait at the one that leaves, want %d", p, c, each)
	}
	_ = old.udp.Close()
	_ = old.tcp.Close()
	sendAll(t, at, client)
	// Soon the successor keeps them.
	testwait.True(t, 10*time.Second, "the successor is alone", func() bool {
		next.steering.mu.Lock()
		defer next.steering.mu.Unlock()
		return next.steering.again == nil
	})
	openSide(t, at)
	sendAll(t, at, client)
	if p, c := next.got(t); p != 2*each || c != 2*each {
		t.Errorf("%d packets and %d connections came to the only one, want %d", p, c, 2*each)
	}
}
