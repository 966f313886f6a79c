//go:build privileged

package route

import (
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
)

// newHost makes a namespace with the devices eth0, eth1 and pod0, and only the routes to
// the networks behind them.
func newHost(t *testing.T) int {
	t.Helper()
	ns := int(testns.Enter(t))
	for i, name := range []string{"eth0", "eth1", "pod0"} {
		testns.Run(t, "ip", "link", "add", name, "type", "veth", "peer", "name", name+"p")
		testns.Run(t, "ip", "link", "set", name, "up")
		testns.Run(t, "ip", "link", "set", name+"p", "up")
		n := string(rune('1' + i))
		testns.Run(t, "ip", "address", "add", "192.0."+n+".10/24", "dev", name)
		testns.Run(t, "ip", "address", "add", "2001:db8:"+n+"::10/64", "dev", name, "nodad")
	}
	return ns
}

// play runs commands, one a line.
func play(t *testing.T, script string) {
	t.Helper()
	for line := range strings.Lines(script) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case words[0] == "compat":
			if err := os.WriteFile("/proc/sys/net/ipv4/nexthop_compat_mode", []byte(words[1]), 0); err != nil {
				testns.Skip(t, "nexthop objects: %v", err)
			}
		default:
			testns.Run(t, words[0], words[1:]...)
		}
	}
}

func TestUplinksOfAHost(t *testing.T) {
	for _, tc := range []struct {
		name, script string
		want         string
	}{
		{"no route to the world", "", ""},
		{"a default route", "ip route add default via 192.0.1.1", "eth0"},
		{"a default route of IPv6", "ip -6 route add default via 2001:db8:1::1", "eth0"},
		{"a default route by a device alone", "ip route add default dev eth1", "eth1"},
		{"a gateway of the other family", "ip route add default via inet6 fe80::1 dev eth0", "eth0"},
		{"two with different metrics", "ip route add default via 192.0.1.1 metric 10\nip route add default via 192.0.2.1 metric 20", "eth0 eth1"},
		{"a nexthop object", "compat 0\nip nexthop add id 20 via 192.0.1.1 dev eth0\nip route add default nhid 20", "eth0"},
		{"a nexthop object, told of twice", "compat 1\nip nexthop add id 20 via 192.0.1.1 dev eth0\nip route add default nhid 20", "eth0"},
		{"a nexthop object of IPv6", "compat 0\nip nexthop add id 20 via 2001:db8:1::1 dev eth0\nip -6 route add default nhid 20", "eth0"},
		{"a group of nexthop objects", "compat 0\nip nexthop add id 20 via 192.0.1.1 dev eth0\nip nexthop add id 21 via 192.0.2.1 dev eth1\nip nexthop add id 30 group 20/21\nip route add default nhid 30", "eth0 eth1"},
		{"a nexthop object that moves", "compat 0\nip nexthop add id 20 via 192.0.1.1 dev eth0\nip route add default nhid 20\nip nexthop replace id 20 via 192.0.2.1 dev eth1", "eth1"},
		{"a nexthop object that drops", "compat 0\nip nexthop add id 20 blackhole\nip route add default nhid 20", ""},
		{"several ways", "ip route add default nexthop via 192.0.1.1 dev eth0 nexthop via 192.0.2.1 dev eth1", "eth0 eth1"},
		{"several ways of IPv6", "ip -6 route add default nexthop via 2001:db8:1::1 dev eth0 nexthop via 2001:db8:2::1 dev eth1", "eth0 eth1"},
		{"two halves", "ip route add 0.0.0.0/1 via 192.0.1.1\nip route add 128.0.0.0/1 via 192.0.1.1", "eth0"},
		{"a half each", "ip route add 0.0.0.0/1 via 192.0.1.1\nip route add 128.0.0.0/1 via 192.0.2.1", "eth0 eth1"},
		{"two halves of IPv6", "ip -6 route add ::/1 via 2001:db8:1::1\nip -6 route add 8000::/1 via 2001:db8:1::1", "eth0"},
		{"the global addresses of IPv6", "ip -6 route add 2000::/3 via 2001:db8:1::1", "eth0"},
		{"a table that a rule leads to", "ip route add default via 192.0.1.1 table 100\nip rule add from 10.0.0.0/8 table 100", "eth0"},
		{"a table with a large number", "ip route add default via 192.0.1.1 table 51820\nip rule add not fwmark 51820 table 51820", "eth0"},
		{"a rule with ports", "ip route add default via 192.0.1.1 table 100\nip rule add ipproto udp dport 53 table 100", "eth0"},
		{"a rule of IPv6", "ip -6 route add default via 2001:db8:1::1 table 100\nip -6 rule add from fd00::/8 table 100", "eth0"},
		{"a nexthop object in such a table", "compat 0\nip nexthop add id 20 via 192.0.1.1 dev eth0\nip route add default nhid 20 table 100\nip rule add from all table 100", "eth0"},
		{"a table that no rule leads to", "ip route add default via 192.0.1.1 table 100", ""},
		{"a table that a rule of the other family leads to", "ip route add default via 192.0.1.1 table 100\nip -6 rule add from fd00::/8 table 100", ""},
		{"a default route that drops", "ip route add blackhole default", ""},
		{"by lo", "ip route add default dev lo", ""},
		{"private networks and multicast", "ip route add 10.0.0.0/8 dev pod0\nip route add 172.16.0.0/12 dev pod0\nip route add 192.168.0.0/16 dev pod0\nip route add 224.0.0.0/4 dev pod0\nip -6 route add fd00::/8 dev pod0", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			ns := newHost(t)
			play(t, tc.script)
			routes, err := List(ns)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, index := range Uplinks(routes) {
				link, err := net.InterfaceByIndex(int(index))
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, link.Name)
			}
			slices.Sort(got)
			if strings.Join(got, " ") != tc.want {
				t.Errorf("uplinks %v, want %q\n%s", got, tc.want, testns.Run(t, "ip", "route", "show", "table", "all"))
			}
		})
	}
}

func TestDirect(t *testing.T) {
	for _, tc := range []struct {
		name, script string
		want         bool
	}{
		{"behind the device", "ip route add 10.244.3.0/24 dev eth0", true},
		{"by a gateway", "ip route add 10.244.3.0/24 via 192.0.1.1", false},
		{"by a gateway of the other family", "ip route add 10.244.3.0/24 via inet6 fe80::1 dev eth0", false},
		{"by a gateway of a nexthop object", "compat 0\nip nexthop add id 20 via 192.0.1.1 dev eth0\nip route add 10.244.3.0/24 nhid 20", false},
		{"by a gateway of the other family in a nexthop object", "compat 0\nip nexthop add id 20 via fe80::1 dev eth0\nip route add 10.244.3.0/24 nhid 20", false},
		{"a nexthop object that names a device", "compat 0\nip nexthop add id 20 dev eth0\nip route add 10.244.3.0/24 nhid 20", true},
		{"several ways to the other family", "ip route add 10.244.3.0/24 nexthop via inet6 fe80::1 dev eth0 nexthop via inet6 fe80::2 dev eth1", false},
		{"several devices", "ip route add 10.244.3.0/24 nexthop dev eth0 nexthop dev eth1", true},
		{"wrapped in another header", "ip route add 10.244.3.0/24 encap ip id 7 dst 192.0.1.1 dev eth0", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			ns := newHost(t)
			play(t, tc.script)
			routes, err := List(ns)
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(routes, func(r Route) bool { return r.To.String() == "10.244.3.0/24" })
			if i < 0 || routes[i].Direct() != tc.want {
				t.Errorf("%+v, want direct %t", routes, tc.want)
			}
		})
	}
}
