//go:build privileged

package conntrack_test

import (
	"errors"
	"io/fs"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/internal/testns"
)

// dial opens the table of a new namespace.
func dial(t testing.TB) (*conntrack.Conn, *testns.Namespace) {
	t.Helper()
	ns := testns.New(t)
	c, err := conntrack.Dial(&conntrack.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, ns
}

func tuple(proto conntrack.Protocol, src, dst string) conntrack.Tuple {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	return conntrack.Tuple{Src: s.Addr(), Dst: d.Addr(), SrcPort: s.Port(), DstPort: d.Port(), Proto: proto}
}

func create(t testing.TB, c *conntrack.Conn, entries ...*conntrack.Entry) {
	t.Helper()
	for _, e := range entries {
		if err := c.Create(e); err != nil {
			t.Fatal(err)
		}
	}
}

func dump(t testing.TB, c *conntrack.Conn, f conntrack.Filter) []conntrack.Entry {
	t.Helper()
	var got []conntrack.Entry
	if err := c.Dump(f, func(e *conntrack.Entry) error {
		got = append(got, *e)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

// run runs a program inside the namespace and returns what it wrote.
func run(t testing.TB, ns *testns.Namespace, name string, args ...string) string {
	t.Helper()
	var out []byte
	var err error
	ns.Do(func() { out, err = exec.Command(name, args...).CombinedOutput() })
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestCreateDumpDelete(t *testing.T) {
	t.Parallel()
	c, _ := dial(t)
	want := entry(tuple(conntrack.TCP, "10.0.0.1:4000", "10.96.0.1:443"), func(e *conntrack.Entry) {
		e.Reply.Src, e.Reply.SrcPort = netip.MustParseAddr("10.0.0.9"), 6443
		e.TCP.State = conntrack.TCPEstablished
		e.Status = conntrack.StatusSeenReply | conntrack.StatusAssured
		e.Mark = 0x4000
		e.Zone = 7
	})
	create(t, c, want)

	got := dump(t, c, conntrack.Filter{})
	if len(got) != 1 {
		t.Fatalf("dumped %d entries, want 1", len(got))
	}
	e := got[0]
	if e.Original != want.Original || e.Reply != want.Reply {
		t.Errorf("tuples %v %v, want %v %v", e.Original, e.Reply, want.Original, want.Reply)
	}
	if e.TCP.State != conntrack.TCPEstablished || e.State() != "ESTABLISHED" || e.Mark != 0x4000 || e.Zone != 7 {
		t.Errorf("state %s mark %#x zone %d", e.State(), e.Mark, e.Zone)
	}
	if e.NAT() != conntrack.NATDestination {
		t.Errorf("NAT %s, want dnat (status %s)", e.NAT(), e.Status)
	}
	if e.Timeout <= 9*time.Minute || e.Timeout > 10*time.Minute {
		t.Errorf("timeout %s", e.Timeout)
	}

	reply := want.Reply
	reply.Zone = want.Zone
	if byReply, err := c.Get(&reply); err != nil || byReply.ID != e.ID {
		t.Errorf("Get(%v) = %+v, %v", reply, byReply, err)
	}
	reply.Zone = 8
	if _, err := c.Get(&reply); !errors.Is(err, conntrack.ErrNotFound) {
		t.Errorf("Get in another zone: %v, want ErrNotFound", err)
	}

	if n, limit, err := c.Count(); err != nil || n != 1 || limit == 0 {
		t.Errorf("Count() = %d, %d, %v, want 1 entry and a limit", n, limit, err)
	}
	if err := c.Create(want); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second Create: %v, want fs.ErrExist", err)
	}
	if err := c.Delete(&e); err != nil {
		t.Error(err)
	}
	if err := c.Delete(&e); !errors.Is(err, conntrack.ErrNotFound) {
		t.Errorf("second Delete: %v, want ErrNotFound", err)
	}
	if got := dump(t, c, conntrack.Filter{}); len(got) != 0 {
		t.Errorf("after Delete: %v", got)
	}
}

func TestDeleteInsideDump(t *testing.T) {
	t.Parallel()
	c, _ := dial(t)
	for port := range uint16(100) {
		create(t, c, entry(conntrack.Tuple{
			Src: netip.MustParseAddr("fd00::1"), Dst: netip.MustParseAddr("fd00::53"),
			SrcPort: 40000 + port, DstPort: 53, Proto: conntrack.UDP,
		}))
	}
	if err := c.Dump(conntrack.Filter{DNS: true}, c.Delete); err != nil {
		t.Fatal(err)
	}
	if got := dump(t, c, conntrack.Filter{}); len(got) != 0 {
		t.Errorf("%d entries left", len(got))
	}
}

func TestDumpStopsEarlyAndGoesOn(t *testing.T) {
	t.Parallel()
	c, _ := dial(t)
	for port := range uint16(2000) { // more than one datagram
		create(t, c, entry(conntrack.Tuple{
			Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"),
			SrcPort: 1 + port, DstPort: 80, Proto: conntrack.UDP,
		}))
	}
	stop := errors.New("enough")
	calls := 0
	err := c.Dump(conntrack.Filter{}, func(*conntrack.Entry) error {
		calls++
		return stop
	})
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("Dump = %v after %d calls, want the callback's own error after 1", err, calls)
	}
	if got := dump(t, c, conntrack.Filter{}); len(got) != 2000 {
		t.Errorf("the next dump has %d entries, want 2000", len(got))
	}
}

func TestStats(t *testing.T) {
	t.Parallel()
	c, ns := dial(t)
	stats, err := c.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if len(stats) == 0 || stats[0].CPU != 0 {
		t.Fatalf("Stats() = %+v, want one for each CPU from 0", stats)
	}
	before := conntrack.Sum(stats)
	// A TCP packet that is no SYN and belongs to nothing is invalid if such are
	// not picked up in the middle.
	run(t, ns, "sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=0")
	run(t, ns, "nft", "add table inet t { chain c { type filter hook input priority 0; ct state invalid counter; }; }")
	ns.Do(func() { sendStrayACK(t) })
	stats, err = c.Stats()
	if err != nil {
		t.Fatal(err)
	}
	after := conntrack.Sum(stats)
	if after.CPU != -1 || after.Invalid <= before.Invalid {
		t.Errorf("sum has %d invalid packets on CPU %d after %d, want more, on CPU -1", after.Invalid, after.CPU, before.Invalid)
	}
}

// sendStrayACK sends one TCP segment that belongs to no connection over lo.
func sendStrayACK(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = unix.Close(fd) }()
	segment := []byte{
		0x9c, 0x40, 0, 9, // ports 40000 and 9
		0, 0, 0, 1, 0, 0, 0, 1,
		5 << 4, 0x10, 0xff, 0xff, // ACK
		0, 0, 0, 0,
	}
	pseudo := append([]byte{127, 0, 0, 1, 127, 0, 0, 1, 0, unix.IPPROTO_TCP, 0, byte(len(segment))}, segment...)
	var sum uint32
	for i := 0; i < len(pseudo); i += 2 {
		sum += uint32(pseudo[i])<<8 | uint32(pseudo[i+1])
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	segment[16], segment[17] = byte(^sum>>8), byte(^sum)
	if err := unix.Sendto(fd, segment, 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Error(err)
	}
}

// BenchmarkDump reads a table of 10,000 entries from the kernel; the figures
// are for one entry.
func BenchmarkDump(b *testing.B) {
	c, _ := dial(b)
	const entries = 10_000
	t := tuple(conntrack.UDP, "10.0.0.1:1000", "10.96.0.10:53")
	for range entries {
		t.SrcPort++
		create(b, c, entry(t))
	}
	for _, bench := range []struct {
		name   string
		filter conntrack.Filter
	}{
		{"all", conntrack.Filter{}},
		{"selected by us", conntrack.Filter{DNS: true}},
		{"selected by the kernel", conntrack.Filter{Protocols: []conntrack.Protocol{conntrack.UDP}, DstPorts: []conntrack.PortRange{{First: 54, Last: 54}}}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				if err := c.Dump(bench.filter, func(*conntrack.Entry) error { n++; return nil }); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/entries, "ns/entry")
		})
	}
}
