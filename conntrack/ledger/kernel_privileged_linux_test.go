//go:build privileged

package ledger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The ledger is compared with the kernel. The kernel tracks the same flows that the server
// notes in a ledger. At every moment both must have the same number of entries of each
// protocol and family. The timeouts are a few seconds: within the test entries begin,
// become streams, and expire.
func TestAgreesWithKernel(t *testing.T) {
	t.Parallel()
	agreesWithKernel(t, false)
}

// Where the kernel reports the ends of TCP connections, the ledger knows of resets, of
// connections without a query, and of clients that close late.
func TestAgreesWithKernelFollowingTCP(t *testing.T) {
	t.Parallel()
	agreesWithKernel(t, true)
}

// agreesWithKernel tries again if the machine stalled and clients or server were late.
func agreesWithKernel(t *testing.T, follow bool) {
	const attempts, tolerable = 3, 60 * ms
	for attempt := 1; ; attempt++ {
		var p problems
		stalled := playBoth(t, &p, follow)
		switch {
		case len(p.list) == 0:
			return
		case stalled <= tolerable:
			t.Error(strings.Join(p.list, "\n"))
			return
		case attempt == attempts:
			t.Skipf("a machine that stalls for %v cannot tell; the last of %d attempts:\n%s", stalled, attempts, strings.Join(p.list, "\n"))
		}
		t.Logf("attempt %d: this machine stalled for %v", attempt, stalled)
	}
}

// playBoth lets clients ask a server whose node tracks them, and returns for how
// long the machine stalled meanwhile.
func playBoth(t *testing.T, p *problems, follow bool) (stalled time.Duration) {
	t.Helper()
	n := newNode(t, map[string]string{
		"nf_conntrack_udp_timeout":           "3",
		"nf_conntrack_udp_timeout_stream":    "6",
		"nf_conntrack_tcp_timeout_time_wait": "4",
		"nf_conntrack_tcp_timeout_close":     "2",
	})
	var timeouts Timeouts
	if err := inNamespace(n.server, func() (err error) {
		timeouts, err = ReadTimeouts("/proc")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if want := (Timeouts{UDP: 3 * s, UDPStream: 6 * s, TCPTimeWait: 4 * s, TCPClose: 2 * s}); timeouts != want {
		t.Fatalf("timeouts of the namespace %+v, want %+v", timeouts, want)
	}
	clock := new(kernelClock)
	l := New(Config{Timeouts: timeouts, TCPIdle: echoIdle, Now: clock.now})
	if follow {
		ends, err := l.FollowTCP(int(n.server), func(server netip.AddrPort) bool {
			return server.Addr() == n.server4 || server.Addr() == n.server6
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := ends.Close(); err != nil {
				t.Error(err)
			}
		})
		if err := ends.SetPorts(53); err != nil {
			t.Fatal(err)
		}
	}
	created, stopCounting := n.countCreated()
	servers := serveEcho(t, n, l, clock)
	longest := stalls(t)

	var clients sync.WaitGroup
	for _, server := range servers {
		for i := range 30 {
			clients.Go(func() { talk(p, n, server, time.Duration(i)*130*ms) })
			if follow {
				clients.Go(func() { hangUp(p, n, server, time.Duration(i)*130*ms) })
			}
		}
	}
	idle := make(chan struct{})
	go func() { clients.Wait(); close(idle) }()

	run := observe(t, n, l, idle)
	stalled = longest()
	if err := stopCounting(); err != nil {
		t.Fatal(err)
	}
	for class, count := range countsByClass {
		// A machine that stalls may turn a retransmit into a port reused.
		kernel, ledger := count(*created), count(l.Flows())
		if off := max(kernel, ledger) - min(kernel, ledger); off > kernel/100+1 {
			p.Errorf("%s: the kernel made %d entries, the ledger %d", class, kernel, ledger)
		}
	}
	peak := run.check(p, 250*ms)
	t.Logf("%d entries at the peak, created %+v", peak, *created)
	if peak < 500 {
		p.Errorf("only %d entries at the peak: the test tests little", peak)
	}
	return stalled
}

var countsByClass = map[string]func(Counts) uint64{
	"UDP over IPv4": func(c Counts) uint64 { return c.UDP4 },
	"UDP over IPv6": func(c Counts) uint64 { return c.UDP6 },
	"TCP over IPv4": func(c Counts) uint64 { return c.TCP4 },
	"TCP over IPv6": func(c Counts) uint64 { return c.TCP6 },
}

// observation is the number of entries in the kernel, counted between two times,
// and in the ledger before and after.
type observation struct {
	from, to              time.Time
	before, kernel, after Counts
}

// observe counts the entries of both until the clients are idle and no entry is
// left in either.
func observe(t *testing.T, n *node, l *Ledger, idle <-chan struct{}) (run observations) {
	t.Helper()
	tick := time.NewTicker(50 * ms)
	defer tick.Stop()
	for deadline := time.Now().Add(60 * s); ; <-tick.C {
		o := observation{from: time.Now(), before: l.Entries().Counts}
		var err error
		if o.kernel, err = n.entries(); err != nil {
			t.Fatal(err)
		}
		o.after = l.Entries().Counts
		o.to = time.Now()
		run = append(run, o)
		select {
		case <-idle:
			if o.kernel.Total() == 0 && o.after.Total() == 0 {
				return run
			}
		default:
		}
		if o.to.After(deadline) {
			t.Fatalf("after a minute the kernel still has entries %+v, the ledger %+v", o.kernel, o.after)
		}
	}
}

// stalls returns a function that says for how long at the most this process has
// not run since.
func stalls(t *testing.T) (longest func() time.Duration) {
	ticker := time.NewTicker(5 * ms)
	stop, done := make(chan struct{}), make(chan struct{})
	var most time.Duration
	go func() {
		defer close(done)
		for last := time.Now(); ; {
			select {
			case <-stop:
				return
			case <-ticker.C:
				now := time.Now()
				most, last = max(most, now.Sub(last)), now
			}
		}
	}()
	end := sync.OnceFunc(func() { close(stop); <-done; ticker.Stop() })
	t.Cleanup(end)
	return func() time.Duration { end(); return most }
}

// talk is a client of each kind, beginning after a time.
func talk(p *problems, n *node, server netip.AddrPort, begin time.Duration) {
	<-time.After(begin)
	ask := func(ns netns.NsHandle, network string, script ...any) {
		if err := askEcho(ns, network, server, script...); err != nil {
			p.Errorf("%s to %v, %v: %v", network, server, script, err)
		}
	}
	var kinds sync.WaitGroup
	defer kinds.Wait()
	kinds.Go(func() {
		for range 8 { // fresh ports
			ask(n.client, "udp", reply(0), answer)
		}
		ask(n.client, "udp", reply(never))
		ask(n.server, "udp", reply(0), answer) // the node's own query, over lo
		ask(n.client, "udp", reply(0), reply(50*ms), answer, answer)
		ask(n.client, "tcp", reply(0), answer)
		ask(n.client, "tcp", reply(10*ms), reply(20*ms), answer, answer)
	})
	for _, script := range [][]any{
		{reply(2200 * ms), answer},                             // late, and no stream
		{reply(0), answer, pause(2200 * ms), reply(0), answer}, // a stream
		{reply(0), answer, pause(1800 * ms), reply(0), answer}, // no stream
		{reply(0), answer, pause(1500 * ms), reply(0), answer, pause(1500 * ms), reply(0), answer},
		{reply(never), pause(1000 * ms), reply(never), pause(1200 * ms), reply(0), answer}, // retransmits
		{reply(0), answer, pause(3300 * ms), reply(0), answer},                             // another entry
		{reply(3500 * ms), answer, pause(2200 * ms), reply(0), answer},                     // response after expiry
	} {
		kinds.Go(func() { ask(n.client, "udp", script...) })
	}
	kinds.Go(func() {
		// A client that keeps its connection, until the server closes it.
		ask(n.client, "tcp", reply(0), answer, pause(800*ms), reply(0), answer, pause(700*ms),
			reply(0), answer, pause(600*ms), reply(0), answer, end)
	})
}

// hangUp has clients that end their connections in ways that no query shows.
func hangUp(p *problems, n *node, server netip.AddrPort, begin time.Duration) {
	<-time.After(begin)
	var kinds sync.WaitGroup
	defer kinds.Wait()
	for _, script := range [][]any{
		{reply(0), answer, reset},            // for CLOSE
		{pause(200 * ms)},                    // without a query
		{reset},                              // the same, reset
		{reply(0), answer, pause(1700 * ms)}, // closes late, its one query long past
		{reply(0), answer, pause(1500 * ms), reply(0), answer, reset},   // later than a stream
		{reply(0), answer, pause(1200 * ms), reply(1000 * ms), reset},   // before the answer
		{reply(0), answer, reply(0), answer, pause(3 * s)},              // closes after the server
		{reply(0), answer, pause(900 * ms), reply(0), answer, pause(s)}, // closes before the server would
	} {
		kinds.Go(func() {
			if err := askEcho(n.client, "tcp", server, script...); err != nil {
				p.Errorf("tcp to %v, %v: %v", server, script, err)
			}
		})
	}
}

const (
	never  = 255 * 20 * ms
	answer = step("answer")
	end    = step("end")
	reset  = step("reset")
)

func askEcho(ns netns.NsHandle, network string, server netip.AddrPort, script ...any) error {
	conn, err := dial(ns, network, server)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(20 * s)); err != nil {
		return err
	}
	var b [1]byte
	for _, x := range script {
		switch x := x.(type) {
		case reply:
			_, err = conn.Write([]byte{byte(time.Duration(x) / (20 * ms))})
		case pause:
			<-time.After(time.Duration(x))
		case step:
			if x == reset {
				return conn.(*net.TCPConn).SetLinger(0)
			}
			_, err = conn.Read(b[:])
			if x == end && errors.Is(err, io.EOF) {
				return nil
			}
		}
		if err != nil {
			return fmt.Errorf("%T: %w", x, err)
		}
	}
	return nil
}

// echoIdle is the idle timeout of the TCP server.
const echoIdle = 2 * s

// serveEcho listens on both addresses of the node and notes queries and responses in the
// ledger, as a DNS server does. A query is a byte n: its response comes after n times 20 ms,
// for 255 never.
func serveEcho(t *testing.T, n *node, l *Ledger, clock *kernelClock) []netip.AddrPort {
	t.Helper()
	servers := []netip.AddrPort{netip.AddrPortFrom(n.server4, 53), netip.AddrPortFrom(n.server6, 53)}
	for _, server := range servers {
		var udp *net.UDPConn
		var tcp net.Listener
		if err := inNamespace(n.server, func() (err error) {
			if udp, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(server)); err != nil {
				return err
			}
			raw, err := udp.SyscallConn()
			if err != nil {
				return err
			}
			if err := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
			}); err != nil {
				return err
			}
			if err != nil {
				return err
			}
			tcp, err = new(net.ListenConfig).Listen(context.Background(), "tcp", server.String())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = udp.Close(), tcp.Close() })
		go serveUDP(udp, l, clock)
		go serveTCP(tcp, l)
	}
	return servers
}

func serveUDP(conn *net.UDPConn, l *Ledger, clock *kernelClock) {
	server := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	var b [1]byte
	oob := make([]byte, 128)
	for {
		_, n, _, client, err := conn.ReadMsgUDPAddrPort(b[:], oob)
		if err != nil {
			return
		}
		f := Flow{Proto: unix.IPPROTO_UDP, Client: client, Server: server}
		var pending Pending
		clock.at(timestamp(oob[:n]), func() { pending = l.Query(f) })
		respond(b[0], func() {
			pending.Response()
			_, _ = conn.WriteToUDPAddrPort([]byte{1}, client)
		})
	}
}

// timestamp is when the kernel received the datagram with these control messages.
func timestamp(oob []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		panic(err)
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS {
			ts := (*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
			return time.Unix(ts.Unix())
		}
	}
	panic("a datagram without a timestamp")
}

func serveTCP(listener net.Listener, l *Ledger) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = conn.Close() }()
			f := Flow{
				Proto:  unix.IPPROTO_TCP,
				Client: conn.RemoteAddr().(*net.TCPAddr).AddrPort(),
				Server: conn.LocalAddr().(*net.TCPAddr).AddrPort(),
			}
			var b [1]byte
			for {
				_ = conn.SetReadDeadline(time.Now().Add(echoIdle))
				if _, err := conn.Read(b[:]); err != nil {
					return // the client has closed, or is idle
				}
				pending := l.Query(f)
				respond(b[0], func() {
					pending.Response()
					_, _ = conn.Write([]byte{1})
				})
			}
		}()
	}
}

func respond(in byte, send func()) {
	switch in {
	case 0:
		send()
	case 255:
	default:
		time.AfterFunc(time.Duration(in)*20*ms, send)
	}
}

type observations []observation

// check compares each count of the kernel with the ledger's counts within a lag: a busy
// machine may run the server that long after the kernel saw the packet. A few counts may
// disagree.
func (run observations) check(p *problems, lag time.Duration) (peak uint64) {
	const slack = 2
	var disagree []string
	for _, o := range run {
		peak = max(peak, o.kernel.Total())
		for class, count := range countsByClass {
			least, most := count(o.before), count(o.before)
			for _, near := range run {
				if near.from.Before(o.to.Add(lag)) && near.to.After(o.from.Add(-lag)) {
					least = min(least, count(near.before), count(near.after))
					most = max(most, count(near.before), count(near.after))
				}
			}
			if k := count(o.kernel); k+slack < least || k > most+slack {
				disagree = append(disagree, fmt.Sprintf("after %v, %s: the kernel has %d entries, the ledger %d to %d",
					o.from.Sub(run[0].from).Round(ms), class, k, least, most))
			}
		}
	}
	if n := len(run) * len(countsByClass); len(disagree) > n/50 {
		p.Errorf("%d of %d counts disagree:\n%s", len(disagree), n, strings.Join(disagree, "\n"))
	}
	return peak
}
