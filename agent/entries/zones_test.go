//go:build privileged

package entries

import (
	"net"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

// The entry of a query is found in any zone, once by a walk and then without one, and
// then deleted.
func TestTrackedInAZone(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, zone string
		listen     string
		want       uint16
	}{
		{"the default zone", "ct state new accept", "127.0.0.1:53", 0},
		{"a zone", "ct zone set 7", "127.0.0.1:53", 7},
		{"a zone, over IPv6", "ct zone set 7", "[::1]:53", 7},
		{"a zone of the queries alone", "ct original zone set 7", "127.0.0.1:53", 7},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			testns.New(t).Do(func() {
				for _, rule := range []string{"add table inet x", "add chain inet x o { type filter hook output priority -310; }", "add rule inet x o udp dport 53 " + tc.zone} {
					if out, err := exec.Command("nft", rule).CombinedOutput(); err != nil {
						t.Errorf("nft %s: %v\n%s", rule, err, out)
						return
					}
				}
				var s ZoneSearch
				for _, walk := range []bool{true, false} {
					client, server := sendOne(t, tc.listen)
					if !walk {
						s.walked, s.took = time.Now(), time.Hour
					}
					zone, found, err := s.Tracked(client, server)
					if err != nil || !found || zone != tc.want {
						t.Errorf("walk %t: zone %d, found %t, %v; want zone %d", walk, zone, found, err, tc.want)
					}
					if _, again, err := s.Tracked(client, server); again || err != nil {
						t.Errorf("walk %t: the entry is still there: %t, %v", walk, again, err)
					}
				}
			})
		})
	}
}

// sendOne sends a query that nobody reads, and returns its client and server.
func sendOne(t *testing.T, listen string) (client, server netip.AddrPort) {
	server = netip.MustParseAddrPort(listen)
	l, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(server))
	if err != nil {
		t.Error(err)
		return
	}
	defer l.Close()
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{0}); err != nil {
		t.Error(err)
	}
	return conn.LocalAddr().(*net.UDPAddr).AddrPort(), server
}

// Entries that our late answers created are deleted in any zone.
func TestPurgeReversedInAZone(t *testing.T) {
	t.Parallel()
	testns.New(t).Do(func() {
		conn, err := conntrack.Dial(nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		listen := iptables.Endpoint{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.UDP}
		for i, zones := range [][2]uint16{{0, 0}, {7, 0}, {0, 9}} {
			o := conntrack.Tuple{Src: listen.Addr, SrcPort: 53, Dst: netip.MustParseAddr("10.244.0.11"), DstPort: uint16(4000 + i), Proto: conntrack.UDP, Zone: zones[1]}
			e := &conntrack.Entry{Original: o, Reply: o.Mirror(), Zone: zones[0], Timeout: time.Minute}
			e.Reply.Zone = 0
			if err := conn.Create(e); err != nil {
				t.Errorf("zones %v: %v", zones, err)
			}
		}
		if err := PurgeReversed([]iptables.Endpoint{listen}); err != nil {
			t.Error(err)
		}
		if n, _, err := conn.Count(); n != 0 || err != nil {
			t.Errorf("%d entries are left, %v", n, err)
		}
	})
}

// A zone that nobody knows is found by a walk, which a change of rules brings on.
func TestWalkAfterAChange(t *testing.T) {
	t.Parallel()
	testns.New(t).Do(func() {
		for _, rule := range []string{"add table inet x", "add chain inet x o { type filter hook output priority -310; }", "add rule inet x o udp dport 53 ct zone set 7"} {
			if out, err := exec.Command("nft", rule).CombinedOutput(); err != nil {
				t.Errorf("nft %s: %v\n%s", rule, err, out)
				return
			}
		}
		s := ZoneSearch{walked: time.Now().Add(-time.Minute), took: 100 * time.Millisecond}
		client, server := sendOne(t, "127.0.0.1:53")
		if _, found, err := s.Tracked(client, server); found || err != nil {
			t.Errorf("found %t, %v: the table was walked so soon after a walk", found, err)
		}
		s.RulesChanged()
		if zone, found, err := s.Tracked(client, server); !found || zone != 7 || err != nil {
			t.Errorf("after a change: zone %d, found %t, %v; want zone 7", zone, found, err)
		}
	})
}
