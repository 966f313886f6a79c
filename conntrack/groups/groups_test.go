package groups

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/kubeapi/names"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func book() *names.Book {
	return names.New(map[netip.Addr]names.Owner{
		addr("192.0.2.1"):   {Kind: names.Node, Name: "node-1"},
		addr("10.244.0.7"):  {Kind: names.Pod, Namespace: "shop", Name: "cart"},
		addr("fd00::7"):     {Kind: names.Pod, Namespace: "shop", Name: "cart"},
		addr("10.244.0.8"):  {Kind: names.Pod, Namespace: "shop", Name: "web"},
		addr("10.244.0.53"): {Kind: names.Pod, Namespace: "kube-system", Name: "coredns"},
		addr("10.88.0.2"):   {Kind: names.Process, Name: "postgres (302)"},
		addr("10.96.0.10"):  {Kind: names.Service, Namespace: "kube-system", Name: "kube-dns"},
	})
}

// flow is an entry; server is who answers, where destination NAT changes that.
func flow(p conntrack.Protocol, src, dst, server string, status conntrack.Status) *conntrack.Entry {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	e := &conntrack.Entry{Status: status}
	e.Original = conntrack.Tuple{Src: s.Addr(), Dst: d.Addr(), Proto: p}
	if p.HasPorts() {
		e.Original.SrcPort, e.Original.DstPort = s.Port(), d.Port()
	}
	e.Reply = e.Original.Mirror()
	if server != "" {
		e.Reply.Src = addr(server)
		e.Status |= conntrack.StatusDstNAT
	}
	fields := conntrack.FieldStatus
	if p == conntrack.TCP {
		fields |= conntrack.FieldTCP
		e.TCP.State = conntrack.TCPTimeWait
	}
	e.SetFields(fields)
	return e
}

func someTable() []*conntrack.Entry {
	const replied = conntrack.StatusSeenReply
	return []*conntrack.Entry{
		flow(conntrack.UDP, "10.244.0.7:4000", "10.96.0.10:53", "10.244.0.53", replied),
		flow(conntrack.UDP, "10.244.0.7:4001", "10.96.0.10:53", "10.244.0.53", 0),
		flow(conntrack.UDP, "[fd00::7]:4000", "[2001:db8::1]:53", "", 0),
		flow(conntrack.TCP, "10.244.0.8:5000", "203.0.113.9:443", "", replied),
		flow(conntrack.TCP, "198.51.100.4:5000", "192.0.2.1:30080", "10.244.0.8", replied), // a NodePort
		flow(conntrack.TCP, "192.0.2.1:5000", "10.244.0.53:8080", "", replied),             // kubelet's probe
		flow(conntrack.TCP, "192.0.2.1:5001", "192.0.2.2:6443", "", replied),
		flow(conntrack.UDP, "10.244.3.3:5001", "10.244.4.4:9", "", 0), // passing through
		flow(conntrack.ICMP, "10.88.0.2:0", "203.0.113.9:0", "", replied),
	}
}

func text(rows []Row) string {
	var out []string
	for _, r := range rows {
		out = append(out, fmt.Sprintf("%s %d/%d/%d/%d", r.Name, r.Entries, r.Unreplied, r.DNS, r.New))
	}
	return strings.Join(out, "; ")
}

func TestRows(t *testing.T) {
	t.Parallel()
	c := New(book(), All()...)
	c.After(nil)
	first := c
	for _, e := range someTable()[:3] {
		_ = first.Add(e)
	}
	c = New(book(), All()...)
	c.After(first.Seen())
	for _, e := range someTable() {
		_ = c.Add(e)
		_ = c.Add(e) // a dump may have an entry twice
	}
	if want := (Counts{Entries: 9, Unreplied: 3, DNS: 3, New: 6}); c.Total() != want {
		t.Errorf("total %+v, want %+v", c.Total(), want)
	}
	for by, want := range map[By]string{
		Pod:         "shop/cart 3/2/3/0; shop/web 2/0/0/2; (node) 1/0/0/1; 10.244.3.3 1/1/0/1; kube-system/coredns 1/0/0/1; postgres (302) 1/0/0/1",
		Namespace:   "shop 5/2/3/2; (no pod) 2/1/0/2; (node) 1/0/0/1; kube-system 1/0/0/1",
		Service:     "(no Service) 6/2/1/5; kube-system/kube-dns 2/1/2/0; node-1:30080 tcp 1/0/0/1",
		Destination: "kube-system/kube-dns:53 udp 2/1/2/0; 10.244.4.4:9 udp 1/1/0/1; 192.0.2.2:6443 tcp 1/0/0/1; 203.0.113.9 icmp 1/0/0/1; 203.0.113.9:443 tcp 1/0/0/1; [2001:db8::1]:53 udp 1/1/1/0; kube-system/coredns:8080 tcp 1/0/0/1; node-1:30080 tcp 1/0/0/1",
		Protocol:    "tcp 4/0/0/4; udp 4/3/3/1; icmp 1/0/0/1",
		State:       "tcp TIME_WAIT 4/0/0/4; udp UNREPLIED 3/3/2/1; icmp REPLIED 1/0/0/1; udp REPLIED 1/0/1/0",
	} {
		got := text(c.Rows(by))
		if got != want {
			t.Errorf("by %s:\n%s, want\n%s", by, got, want)
		}
	}
	if got := text(Top(c.Rows(Pod), 2)); got != "shop/cart 3/2/3/0; shop/web 2/0/0/2; (rest) 4/1/0/4" {
		t.Errorf("the first two: %s", got)
	}
	if got := Top(c.Rows(Protocol), 3); len(got) != 3 {
		t.Errorf("all that there are: %v", got)
	}
}

// Without names each address stands for itself.
func TestRowsWithoutNames(t *testing.T) {
	t.Parallel()
	c := New(new(names.Book), Pod, Service)
	for _, e := range someTable()[:4] {
		_ = c.Add(e)
	}
	if got := text(c.Rows(Pod)); got != "10.244.0.7 2/1/2/0; 10.244.0.8 1/0/0/0; fd00::7 1/1/1/0" {
		t.Errorf("by pod: %s", got)
	}
	if got := text(c.Rows(Service)); got != "(no Service) 2/1/1/0; 10.96.0.10:53 udp 2/1/2/0" {
		t.Errorf("by Service: %s", got)
	}
}

// A flood of forged sources neither grows the memory nor hides the largest, and the sum
// stays that of the table.
func TestBounded(t *testing.T) {
	t.Parallel()
	c := New(new(names.Book), Pod)
	c.counts[Pod].max = 100
	flood := flow(conntrack.UDP, "10.0.0.1:1", "10.96.0.10:53", "", 0)
	large := flow(conntrack.UDP, "10.9.9.9:1", "10.96.0.10:53", "", 0)
	for i := range 100_000 {
		flood.Original.Src = netip.AddrFrom4([4]byte{172, byte(i >> 16), byte(i >> 8), byte(i)})
		_ = c.Add(flood)
		if i%10 == 0 {
			_ = c.Add(large)
		}
		if n := len(c.counts[Pod].counts); n > 100 {
			t.Fatalf("%d keys held", n)
		}
	}
	rows := c.Rows(Pod)
	var sum uint64
	for _, r := range rows {
		sum += r.Entries
	}
	if sum != 110_000 || rows[0].Name != Rest || rows[1].Name != "10.9.9.9" || rows[1].Entries != 10_000 {
		t.Errorf("sum %d, largest %v", sum, rows[:2])
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	for _, b := range All() {
		if got, err := Parse(b.String()); got != b || err != nil {
			t.Errorf("%s: %v, %v", b, got, err)
		}
	}
	if _, err := Parse("node"); err == nil || !strings.Contains(err.Error(), "pod, namespace") {
		t.Errorf("an unknown word: %v", err)
	}
}

func BenchmarkAdd(b *testing.B) {
	entries := someTable()
	for name, by := range map[string][]By{"pod": {Pod}, "all": All()} {
		b.Run(name, func(b *testing.B) {
			c := New(book(), by...)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				_ = c.Add(entries[i%len(entries)])
			}
		})
	}
}
