//go:build privileged

package nftables

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/internal/tracetest"
)

// A device whose queries are dropped behind our rules is found, another one and a
// device that is set aside are not.
func TestLost(t *testing.T) {
	for _, f := range nfnl.Families {
		t.Run(f.String(), func(t *testing.T) {
			n := tracetest.NewNode(t)
			testns.Run(t, "nft", "delete", "table", "inet", "observer") // it drops what it has seen
			b := newKernelTrace(t, n)
			rules := tracetest.Rules(f)
			rules.Plan.Lease, rules.Leases = 0, nil
			if err := errors.Join(b.Install(rules), b.Attach()); err != nil {
				t.Fatal(err)
			}
			from := func(device, client string) tracetest.Packet {
				return tracetest.Packet{Proto: iptables.UDP, Device: device, Src: tracetest.AddrPort(f, client), Dst: tracetest.AddrPort(f, "vip:53")}
			}
			ask := func() []string {
				n.Inject(t, iptables.Prerouting, from("pod0", "pod:4000"))
				n.Inject(t, iptables.Prerouting, from("uplink2", "pod2:4000"))
				lost, err := b.Lost(time.Time{})
				if err != nil {
					t.Fatal(err)
				}
				return lost
			}
			tracetest.Await(t, "the queries of both arrive", func() bool {
				ask()
				elements, err := n.Conn.GetSetElements(b.rs.sets[arrivedSet.name])
				return err == nil && len(elements) == 2
			})
			if lost := ask(); len(lost) > 0 {
				t.Errorf("%v are lost, and nothing drops", lost)
			}
			testns.Run(t, "nft", "add table inet x; add chain inet x c { type filter hook input priority 0; }; add rule inet x c iifname pod0 ct state untracked drop")
			tracetest.Await(t, "the loss is found", func() bool { return slices.Equal(ask(), []string{"pod0"}) })
			if err := b.Quarantine("pod0", time.Minute); err != nil {
				t.Fatal(err)
			}
			tracetest.Await(t, "the device is set aside", func() bool { return len(ask()) == 0 })
		})
	}
}

// What a client can send so that the kernel drops it behind our rules tells
// nothing about the device: it would take the cache away from all who are behind
// it. The last rows are the ones that tell.
func TestForgedLossIsNoEvidence(t *testing.T) {
	n := tracetest.NewNode(t)
	testns.Run(t, "nft", "delete", "table", "inet", "observer")
	for _, line := range []string{
		"ip route add 10.244.0.0/24 dev pod0", "ip -6 route add fd00:244::/64 dev pod0",
		"ip address add 10.244.0.1/24 dev pod0", "ip -6 address add fd00:244::1/64 dev pod0 nodad",
		"ip route add 10.8.0.0/24 dev uplink2", "ip -6 route add fd00:8::/64 dev uplink2",
		"sysctl -qw net.ipv4.conf.pod0.rp_filter=1", // strict
	} {
		words := strings.Fields(line)
		testns.Run(t, words[0], words[1:]...)
	}
	b := newKernelTrace(t, n)
	options := func(packet []byte) []byte {
		// A loose source route that ends here (RFC 791), which hosts refuse.
		packet = slices.Insert(packet, 20, 131, 7, 4, 10, 0, 0, 1, 0)
		packet[0] = 4<<4 | 7
		binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
		return packet
	}
	fragment := func(packet []byte) []byte {
		packet[6] |= 0x20 // more fragments
		return packet
	}
	broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	for _, tc := range []struct {
		name   string
		source string
		mangle func([]byte) []byte
		to     net.HardwareAddr
		want   bool
	}{
		{name: "from loopback", source: "127.0.0.1"},
		{name: "from an address of the node", source: "10.244.0.1"},
		{name: "from a listen address", source: "10.96.0.10"},
		{name: "from behind another device", source: "10.8.0.7"},
		{name: "from the broadcast address", source: "10.244.0.255"},
		{name: "from any broadcast address", source: "255.255.255.255"},
		{name: "from a multicast address", source: "224.0.0.7"},
		{name: "from nobody", source: "0.0.0.0"},
		{name: "with a source route", source: "10.244.0.11", mangle: options},
		{name: "a fragment", source: "10.244.0.11", mangle: fragment},
		{name: "broadcast", source: "10.244.0.11", to: broadcast},
		{name: "IPv6 from an address of the node", source: "fd00:244::1"},
		{name: "IPv6 from behind another device", source: "fd00:8::7"},
		{name: "from a pod", source: "10.244.0.11", want: true},
		{name: "IPv6 from a pod", source: "fd00:244::11", want: true},
	} {
		source := netip.MustParseAddr(tc.source)
		f := iptables.FamilyOf(source)
		rules := tracetest.Rules(f)
		rules.Plan.Lease, rules.Leases = 0, nil
		if err := errors.Join(b.Install(rules), b.Attach()); err != nil {
			t.Fatal(err)
		}
		// As if a rule that nobody understands dropped all queries.
		testns.Run(t, "nft", "add table inet x; add chain inet x c { type filter hook prerouting priority -299; policy drop; }")
		packet := func(device string, source netip.Addr) []byte {
			return tracetest.Wire(tracetest.Packet{Proto: iptables.UDP, Device: device, Src: netip.AddrPortFrom(source, 4000), Dst: tracetest.AddrPort(f, "vip:53")})
		}
		forged := packet("pod0", source)
		if tc.mangle != nil {
			forged = tc.mangle(forged)
			binary.BigEndian.PutUint16(forged[10:], 0)
			binary.BigEndian.PutUint16(forged[10:], tracetest.Checksum(forged[:4*(forged[0]&0x0f)]))
		}
		to := tc.to
		if to == nil {
			to = n.Links["pod0"].HardwareAddr
		}
		behind := netip.MustParseAddr(map[iptables.Family]string{iptables.IPv4: "10.8.0.7", iptables.IPv6: "fd00:8::7"}[f])
		tracetest.Await(t, tc.name+": the loss of an honest query behind it is found", func() bool {
			if err := errors.Join(n.Deliver("pod0", to, forged), n.Deliver("uplink2", n.Links["uplink2"].HardwareAddr, packet("uplink2", behind))); err != nil {
				t.Fatal(err)
			}
			lost, err := b.Lost(time.Time{})
			if err != nil {
				t.Fatal(err)
			}
			if slices.Contains(lost, "pod0") && !tc.want {
				t.Fatalf("%s: %v are lost", tc.name, lost)
			}
			return slices.Contains(lost, "uplink2") && slices.Contains(lost, "pod0") == tc.want
		})
		testns.Run(t, "nft", "delete", "table", "inet", "x")
		if err := b.Remove(); err != nil {
			t.Fatal(err)
		}
	}
}

// A kernel without nft_fib_inet does without the look at who asked.
func TestWithoutFIB(t *testing.T) {
	b := newBackend(t)
	b.rs.noFIB = true
	plain := iptables.Rules{Plan: dnsPlan("10.96.0.10")}
	leased := plain
	leased.Plan.Lease = time.Second
	for _, r := range []iptables.Rules{plain, leased} {
		if err := b.Install(r); err != nil {
			t.Fatal(err)
		}
		if listed := testns.Run(t, "nft", "list", "table", "inet", b.Table()); strings.Contains(listed, "fib ") || strings.Contains(listed, "update @asked") {
			t.Errorf("without fib:\n%s", listed)
		}
	}
}
