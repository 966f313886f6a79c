//go:build privileged

package conntrack_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/conntrack"
)

// menagerie is a table in which every filter finds something to select and
// something to leave out.
func menagerie() map[string]*conntrack.Entry {
	const both = conntrack.StatusSeenReply | conntrack.StatusAssured
	return map[string]*conntrack.Entry{
		"dns":  entry(tuple(conntrack.UDP, "10.0.0.1:1000", "10.96.0.10:53"), func(e *conntrack.Entry) { e.Reply.Src = netip.MustParseAddr("10.244.0.53") }),
		"dns6": entry(tuple(conntrack.UDP, "[fd00::1]:1000", "[fd00::a]:53"), func(e *conntrack.Entry) { e.Status = conntrack.StatusSeenReply }),
		"dns over tcp": entry(tuple(conntrack.TCP, "10.0.0.2:1001", "10.96.0.10:53"), func(e *conntrack.Entry) {
			e.TCP.State, e.Status = conntrack.TCPTimeWait, both
		}),
		"reversed": entry(tuple(conntrack.UDP, "10.96.0.10:53", "10.0.0.3:1002")),
		"web": entry(tuple(conntrack.TCP, "10.0.0.1:1003", "192.0.2.80:443"), func(e *conntrack.Entry) {
			e.TCP.State, e.Status, e.Mark = conntrack.TCPEstablished, both, 0x4001
			e.Reply.Dst = netip.MustParseAddr("192.0.2.1")
		}),
		"zoned":  entry(tuple(conntrack.UDP, "10.0.0.1:1004", "10.0.0.9:8080"), func(e *conntrack.Entry) { e.Zone = 3 }),
		"zoned1": entry(tuple(conntrack.UDP, "10.0.0.1:1005", "10.0.0.9:8081"), func(e *conntrack.Entry) { e.Original.Zone = 3 }),
		"ping":   entry(conntrack.Tuple{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Proto: conntrack.ICMP, ICMPType: 8, ICMPID: 53}),
	}
}

func TestFilter(t *testing.T) {
	t.Parallel()
	c, _ := dial(t)
	animals := menagerie()
	names := map[conntrack.Tuple]string{}
	for name, e := range animals {
		create(t, c, e)
		names[e.Original] = name
	}
	for _, test := range []struct {
		name   string
		filter conntrack.Filter
		want   string // names, sorted
	}{
		{"all", conntrack.Filter{}, "dns|dns over tcp|dns6|ping|reversed|web|zoned|zoned1"},
		{"family", conntrack.Filter{Family: conntrack.FamilyIPv6}, "dns6"},
		{"one protocol", conntrack.Filter{Protocols: []conntrack.Protocol{conntrack.TCP}}, "dns over tcp|web"},
		{"protocols", conntrack.Filter{Protocols: []conntrack.Protocol{conntrack.TCP, conntrack.ICMP}}, "dns over tcp|ping|web"},
		{"address", conntrack.Filter{Src: prefixes("10.0.0.1/32")}, "dns|ping|web|zoned|zoned1"},
		{"IPv6 address", conntrack.Filter{Dst: prefixes("fd00::a/128")}, "dns6"},
		{"network", conntrack.Filter{Dst: prefixes("10.96.0.0/16", "fd00::/64")}, "dns|dns over tcp|dns6"},
		{"reply source", conntrack.Filter{ReplySrc: prefixes("10.244.0.0/16")}, "dns"},
		{"reply destination", conntrack.Filter{ReplyDst: prefixes("192.0.2.1/32")}, "web"},
		{"either end", conntrack.Filter{Ends: []netip.Addr{netip.MustParseAddr("10.244.0.53"), netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("10.0.0.2")}}, "dns|dns over tcp|ping|zoned|zoned1"},
		{"kernel-side port", conntrack.Filter{Protocols: []conntrack.Protocol{conntrack.UDP}, DstPorts: []conntrack.PortRange{{53, 53}}}, "dns|dns6"},
		{"kernel-side all", conntrack.Filter{
			Protocols: []conntrack.Protocol{conntrack.UDP}, Src: prefixes("10.0.0.1/32"), Dst: prefixes("10.96.0.10/32"),
			SrcPorts: []conntrack.PortRange{{1000, 1000}}, DstPorts: []conntrack.PortRange{{53, 53}},
		}, "dns"},
		{"port without protocol", conntrack.Filter{DstPorts: []conntrack.PortRange{{53, 53}}}, "dns|dns over tcp|dns6"},
		{"port 0 is not ICMP", conntrack.Filter{DstPorts: []conntrack.PortRange{{0, 65535}}}, "dns|dns over tcp|dns6|reversed|web|zoned|zoned1"},
		{"port ranges", conntrack.Filter{SrcPorts: []conntrack.PortRange{{1002, 1003}, {1005, 1005}}}, "web|zoned1"},
		{"state", conntrack.Filter{States: []string{"time_wait", "ESTABLISHED"}}, "dns over tcp|web"},
		{"replied", conntrack.Filter{States: []string{"REPLIED"}}, "dns6"},
		{"status", conntrack.Filter{Status: conntrack.StatusAssured}, "dns over tcp|web"},
		{"not status", conntrack.Filter{NotStatus: conntrack.StatusSeenReply}, "dns|ping|reversed|zoned|zoned1"},
		{"status and not", conntrack.Filter{Status: conntrack.StatusSeenReply, NotStatus: conntrack.StatusAssured}, "dns6"},
		{"zone", conntrack.Filter{Zone: ptr(uint16(3))}, "zoned|zoned1"},
		{"default zone, also of the replies alone", conntrack.Filter{Zone: ptr(uint16(0))}, "dns|dns over tcp|dns6|ping|reversed|web|zoned1"},
		{"mark", conntrack.Filter{Mark: ptr(uint32(0x4001))}, "web"},
		{"mark under mask", conntrack.Filter{Mark: ptr(uint32(0x4000)), MarkMask: 0x4000}, "web"},
		{"no mark", conntrack.Filter{Mark: ptr(uint32(0))}, "dns|dns over tcp|dns6|ping|reversed|zoned|zoned1"},
		{"no mark under mask", conntrack.Filter{Mark: ptr(uint32(0)), MarkMask: 0xf0}, "dns|dns over tcp|dns6|ping|reversed|web|zoned|zoned1"},
		{"nat", conntrack.Filter{NAT: []conntrack.NATKind{conntrack.NATSource, conntrack.NATDestination}}, "dns|web"},
		{"no nat", conntrack.Filter{NAT: []conntrack.NATKind{conntrack.NATNone}}, "dns over tcp|dns6|ping|reversed|zoned|zoned1"},
		{"dns", conntrack.Filter{DNS: true}, "dns|dns over tcp|dns6|reversed"},
		{"nothing", conntrack.Filter{Src: prefixes("198.51.100.1/32")}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := map[string]bool{}
			for _, e := range dump(t, c, test.filter) {
				got[names[e.Original]] = true
			}
			want := map[string]bool{}
			for _, name := range strings.Split(test.want, "|") {
				want[name] = name != ""
			}
			for name := range animals {
				if got[name] != want[name] {
					t.Errorf("%s: selected %t, want %t", name, got[name], want[name])
				}
			}
		})
	}
}
