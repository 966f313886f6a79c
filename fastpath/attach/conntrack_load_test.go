//go:build privileged && load

package attach

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/internal/testwait"
)

// Hits leave no conntrack entry where kube-proxy's DNAT is and no rule untracks them. A miss
// leaves one.
func TestHitsLeaveNoEntry(t *testing.T) {
	t.Parallel()
	const queries = 10_000
	p, node, pod := load(t), testns.New(t), testns.New(t)
	ip(t, node, fmt.Sprintf("link add pod type veth peer name eth0 netns /proc/%d/fd/%d", os.Getpid(), pod.FD()),
		"addr add 10.244.0.1/24 dev pod", "link set pod up")
	ip(t, pod, "addr add 10.244.0.7/24 dev eth0", "link set eth0 up", "route add default via 10.244.0.1")
	node.Do(func() {
		testns.Feed(t, "table ip proxy { chain services { type nat hook prerouting priority -100; ip daddr 10.96.0.10 udp dport 53 dnat to 10.244.0.53; }; }", "nft", "-f", "-")
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
	})
	server := netip.MustParseAddrPort("10.96.0.10:53")
	if err := p.Listen(server, 0, 1<<16-1); err != nil {
		t.Fatal(err)
	}
	p.Open(0, time.Now().Add(time.Hour))
	publish(t, p, "www.example.")
	w, _ := watch(t, node, Config{Program: p.BPF()})
	waitFor(t, "attached", func() bool { return w.attached() == "pod" })
	conn, err := conntrack.Dial(&conntrack.Config{NetNS: node.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	entries := func() (n int) {
		if err := conn.Dump(conntrack.Filter{}, func(*conntrack.Entry) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	ask := func(name string) error { return askFrom(t, pod, server, name) }
	testwait.Until(t, 10*time.Second, "an answer, when the link is up", func() error { return ask("www.example.") })
	before, seen := hits(t, p), entries()
	for range queries {
		if err := ask("www.example."); err != nil {
			t.Fatal(err)
		}
	}
	if n := hits(t, p) - before; n != queries {
		t.Errorf("%d hits of %d queries", n, queries)
	}
	if n := entries(); n != seen {
		t.Errorf("%d entries after %d hits, %d before", n, queries, seen)
	}
	_ = ask("miss.example.") // nobody answers
	if n := entries(); n != seen+1 {
		t.Errorf("%d entries after a miss, want %d: nothing is tracked here", n, seen+1)
	}
}

// askFrom asks from a port of its own.
func askFrom(t testing.TB, pod *testns.Namespace, server netip.AddrPort, name string) (err error) {
	t.Helper()
	query, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	pod.Do(func() {
		var conn *net.UDPConn
		if conn, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(server)); err != nil {
			return
		}
		defer conn.Close()
		if _, err = conn.Write(query); err != nil {
			return
		}
		if err = conn.SetReadDeadline(time.Now().Add(time.Second)); err == nil {
			_, err = conn.Read(make([]byte, 512))
		}
	})
	return err
}
