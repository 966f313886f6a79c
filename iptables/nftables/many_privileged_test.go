//go:build privileged

package nftables

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

func nthClient(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(n >> 16), byte(n >> 8)}), 1024+uint16(n&0xff))
}

// Entries of TCP connections stay in the conntrack table for five days after
// their last packet, so that a node may have a great many.
func TestManyConnections(t *testing.T) {
	for _, tc := range []struct {
		name   string
		n      int
		exempt func(*Backend, []iptables.Connection) error
		set    setKind
		want   func(n int) bool
	}{
		{"exempt", 20_000, (*Backend).Exempt, exemptSet, func(n int) bool { return n == 20_000 }},
		{"exempt only", 5_000, (*Backend).ExemptOnly, exemptSet, func(n int) bool { return n == 5_000 }},
		{"more than there is room for", 70_000, (*Backend).Exempt, exemptSet, func(n int) bool { return n >= 30_000 }},
		{"held", 5_000, (*Backend).Detach, heldSet, func(n int) bool { return n == 5_000 }},
		{"more held than there is room for", 70_000, (*Backend).Detach, heldSet, func(n int) bool { return n >= 30_000 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBackend(t)
			if err := b.Install(iptables.Rules{Plan: dnsPlan("10.96.0.10")}); err != nil {
				t.Fatal(err)
			}
			if err := b.Attach(); err != nil {
				t.Fatal(err)
			}
			conns := make([]iptables.Connection, tc.n)
			for i := range conns {
				conns[i] = iptables.Connection{Client: nthClient(i), Listen: netip.MustParseAddrPort("10.96.0.10:53")}
			}
			if err := tc.exempt(b, conns); err != nil {
				t.Fatal(err)
			}
			if n := elements(t, b.cfg, b.rs.set(tc.set, iptables.IPv4)); !tc.want(n) {
				t.Errorf("%d of %d connections are in the set", n, tc.n)
			}
			live, err := b.Live()
			if err != nil {
				t.Fatal(err)
			}
			if detached := tc.set.name == heldSet.name; detached != (len(live) == 0) {
				t.Errorf("live: %v", live)
			}
		})
	}
}

// Packets have filled a set. The connections that are known take the place of what
// is in it.
func TestAFullSetTakesWhatIsKnown(t *testing.T) {
	for _, tc := range []struct {
		name string
		set  setKind
		give func(*Backend, []iptables.Connection) error
	}{
		{"held", heldSet, (*Backend).Detach},
		{"exempt", exemptSet, (*Backend).Exempt},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBackend(t)
			if err := b.Install(iptables.Rules{Plan: dnsPlan("10.96.0.10")}); err != nil {
				t.Fatal(err)
			}
			of := func(first, n int) (conns []iptables.Connection) {
				for i := range n {
					conns = append(conns, iptables.Connection{Client: nthClient(first + i), Listen: netip.MustParseAddrPort("10.96.0.10:53")})
				}
				return conns
			}
			if err := b.change("fill", func(c *nfnl.Encoder) error { return b.addConnections(c, tc.set, of(0, setSize), false) }); err != nil {
				t.Fatal(err)
			}
			known := of(setSize, 300)
			if err := tc.give(b, known); err != nil {
				t.Fatal(err)
			}
			// While the kernel shrinks the set's hash, a dump has some of them twice.
			testwait.Until(t, 10*time.Second, "the connections that are known, and no other", func() error {
				if n := elements(t, b.cfg, b.rs.set(tc.set, iptables.IPv4)); n != len(known) {
					return fmt.Errorf("%d connections are in the set, want %d", n, len(known))
				}
				return nil
			})
		})
	}
}

func TestManyAddresses(t *testing.T) {
	const addresses, ports = 60, 40
	var names []string
	var r iptables.Rules
	for i := range addresses {
		a := netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(i + 1)})
		names = append(names, a.String())
		for p := range uint16(ports) {
			r.Checks = append(r.Checks, iptables.Check{Endpoint: iptables.Endpoint{Addr: a, Port: 40_000 + p, Proto: iptables.UDP}})
			r.Leases = append(r.Leases, iptables.Lease{Source: netip.AddrPortFrom(a, 41_000+p), Listen: netip.AddrPortFrom(a, 53)})
		}
	}
	r.Plan = dnsPlan(names...)
	r.Plan.Lease = time.Second
	for i := range 200 {
		r.Plan.Sources = append(r.Plan.Sources, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 24))
	}
	b := newBackend(t)
	for range 2 { // made, and changed
		if err := b.Install(r); err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct {
			set  setKind
			f    iptables.Family
			want int
		}{
			{listenSet, iptables.IPv6, 2 * addresses},
			{checkSet, iptables.IPv6, addresses * ports},
			{leaseSet, iptables.IPv6, addresses * ports},
			{sourceSet, iptables.IPv4, 2 * 200},
		} {
			if n := elements(t, b.cfg, b.rs.set(tc.set, tc.f)); n < tc.want || n > tc.want+1 {
				t.Errorf("%s: %d elements, want %d", tc.set.instance(tc.f), n, tc.want)
			}
		}
	}
}

// Endpoints of a headless Service may be thousands.
func TestManyUpstreams(t *testing.T) {
	u := &Upstreams{Config: Config{NetNS: int(testns.Enter(t))}}
	defer u.Close()
	for _, n := range []int{3_000, 1_366, 2_000} { // made, and changed
		var endpoints []iptables.Endpoint
		for i := range n {
			for _, a := range []netip.Addr{
				netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)}),
			} {
				for _, p := range []iptables.Proto{iptables.UDP, iptables.TCP} {
					endpoints = append(endpoints, iptables.Endpoint{Addr: a, Port: 53, Proto: p})
				}
			}
		}
		if err := u.Set(endpoints); err != nil {
			t.Fatalf("%d endpoints: %v", n, err)
		}
		for _, f := range nfnl.Families {
			if got := elements(t, u.Config, u.rs.set(upstreamSet, f)); got != 2*n {
				t.Errorf("%d endpoints: %s has %d elements, want %d", n, upstreamSet.instance(f), got, 2*n)
			}
		}
	}
}

// What the kernel did not take is an error although it said nothing.
func TestReadBack(t *testing.T) {
	b := newBackend(t)
	if err := b.Install(iptables.Rules{Plan: dnsPlan("10.96.0.10")}); err != nil {
		t.Fatal(err)
	}
	contents := b.rs.contents(iptables.Rules{Plan: dnsPlan("10.96.0.10")})
	if err := readBack(b.cfg, contents); err != nil {
		t.Errorf("what is there: %v", err)
	}
	contents = b.rs.contents(iptables.Rules{Plan: dnsPlan("10.96.0.10", "10.96.0.11")})
	if err := readBack(b.cfg, contents); err == nil || !strings.Contains(err.Error(), "set listen4") {
		t.Errorf("with what is not there: %v", err)
	}
}
