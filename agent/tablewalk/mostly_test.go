package tablewalk

import (
	"net/netip"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/iptables"
)

// A flow to a listen address is fresh if a pod or this node sent a packet of it within the
// window.
func TestFreshFlows(t *testing.T) {
	listen := netip.MustParseAddr("10.96.0.10")
	view := &View{listen: map[iptables.Endpoint]bool{
		{Addr: listen, Port: 53, Proto: iptables.UDP}: true, {Addr: listen, Port: 53, Proto: iptables.TCP}: true,
	}}
	for _, tc := range []struct {
		name, src string
		proto     conntrack.Protocol
		left      time.Duration
		status    conntrack.Status
		want      uint64
	}{
		{"of a pod", "10.244.0.11", conntrack.UDP, 25 * time.Second, 0, 1},
		{"of a pod, a stream", "10.244.0.11", conntrack.UDP, 115 * time.Second, conntrack.StatusAssured, 1},
		{"of the node", "192.0.2.10", conntrack.UDP, 25 * time.Second, 0, 1},
		{"before the window", "10.244.0.11", conntrack.UDP, 15 * time.Second, 0, 0},
		{"a stream before the window", "10.244.0.11", conntrack.UDP, 100 * time.Second, conntrack.StatusAssured, 0},
		{"with a time that is not the kernel's", "10.244.0.11", conntrack.UDP, 10 * time.Minute, 0, 0},
		{"from elsewhere", "203.0.113.7", conntrack.UDP, 25 * time.Second, 0, 0},
		{"a check of ours", "10.96.0.10", conntrack.UDP, 25 * time.Second, 0, 0},
		{"over TCP", "10.244.0.11", conntrack.TCP, 25 * time.Second, 0, 0},
	} {
		c := tableCount{
			view: view, entries: Entries{}, servers: map[netip.Addr]bool{},
			origins: origins{
				own: map[netip.Addr]bool{netip.MustParseAddr("192.0.2.10"): true, listen: true}, known: map[netip.Addr]bool{},
				routes: []destination{{netip.MustParsePrefix("10.244.0.0/24"), true}},
			},
			timeouts: ledger.DefaultTimeouts, window: 10 * time.Second, fresh: map[netip.Addr]uint64{},
		}
		e := &conntrack.Entry{Timeout: tc.left, Status: tc.status, Original: conntrack.Tuple{
			Src: netip.MustParseAddr(tc.src), SrcPort: 40000, Dst: listen, DstPort: 53, Proto: tc.proto,
		}}
		e.Reply = e.Original.Mirror()
		if c.add(e); c.fresh[listen] != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, c.fresh[listen], tc.want)
		}
	}
}

func TestMostlyTracked(t *testing.T) {
	a := netip.MustParseAddr("10.96.0.10")
	now := time.Unix(1_000_000, 0)
	for _, tc := range []struct {
		name           string
		fresh, arrived uint64
		attached       time.Duration // before the first walk
		want           uint64
	}{
		{"all of them, which went elsewhere", 20, 0, time.Minute, 20},
		{"all of them, which came here", 20, 20, time.Minute, 20},
		{"some of many", 20, 1000, time.Minute, 0},
		{"too few", 2, 0, time.Minute, 0},
		{"none", 0, 100, time.Minute, 0},
		{"attached since then", 20, 0, -time.Second, 0},
	} {
		w := &Walk{At: now.Add(10 * time.Second)}
		w.judge(window{began: now, arrived: 500}, 500+tc.arrived, map[netip.Addr]uint64{a: tc.fresh})
		var table Watcher
		table.last.Store(w)
		if got := table.MostlyTracked(a, now.Add(-tc.attached)); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
	var first Walk
	first.judge(window{}, 0, map[netip.Addr]uint64{a: 20})
	var table Watcher
	table.last.Store(&first)
	if got := table.MostlyTracked(a, now); got != 0 {
		t.Errorf("after one walk: %d", got)
	}
}
