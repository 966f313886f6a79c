package failover

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"

	"github.com/trackless-dns/trackless/internal/testgolden"
)

func pair(listen, service string, ports ...uint16) Pair {
	return Pair{Listen: netip.MustParseAddr(listen), Service: netip.MustParseAddr(service), Ports: ports}
}

var (
	pair4 = pair("169.254.20.10", "10.96.0.10")
	pair6 = pair("fd00::20:10", "fd00:10:96::a")

	sameAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
)

// TestFailoverPairsThatCannotBe compares the errors of pairs with
// testdata/pair-errors.txt.
func TestFailoverPairsThatCannotBe(t *testing.T) {
	// Install must not ask the kernel.
	cfg := Config{Socket: func() (*netlink.Conn, error) {
		t.Error("Install opens a socket")
		return nil, errors.New("no socket")
	}}
	var out strings.Builder
	for _, tc := range []struct {
		name  string
		pairs []Pair
	}{
		{"nothing", []Pair{{}}},
		{"mixed families", []Pair{pair("169.254.20.10", "fd00:10:96::a")}},
		{"to itself", []Pair{pair("10.96.0.10", "10.96.0.10")}},
		{"mapped", []Pair{pair("::ffff:169.254.20.10", "10.96.0.10")}},
		{"zone", []Pair{pair("fe80::1%lo", "fd00:10:96::a")}},
		{"wildcard", []Pair{pair("0.0.0.0", "10.96.0.10")}},
		{"multicast", []Pair{pair("169.254.20.10", "224.0.0.251")}},
		{"port 0", []Pair{pair("169.254.20.10", "10.96.0.10", 0)}},
		{"two Services for one port", []Pair{pair4, pair("169.254.20.10", "10.96.0.99")}},
		{"chained", []Pair{pair4, pair("10.96.0.10", "10.96.0.99")}},
	} {
		fmt.Fprintf(&out, "%s: %v\n", tc.name, Install(cfg, tc.pairs, Outside{}))
		if got := Print(tc.pairs, Outside{}); got != "" {
			t.Errorf("%s: Print printed a table that cannot be:\n%s", tc.name, got)
		}
	}
	testgolden.Compare(t, "pair-errors.txt", out.String())
}

func TestFailoverListen(t *testing.T) {
	pairs := []Pair{pair6, pair4, pair("169.254.20.11", "10.96.0.10", 53, 5353), pair("169.254.20.12", "10.96.0.99")}
	for _, tc := range []struct {
		name string
		zone uint16
		dst  string
		want string // empty: no flow of the failover table
	}{
		{"the first address of a Service", 53, "10.96.0.10:53", "169.254.20.10:53"},
		{"the second address of a Service", 54, "10.96.0.10:53", "169.254.20.11:53"},
		{"another port", 54, "10.96.0.10:5353", "169.254.20.11:5353"},
		{"a port of the other address", 53, "10.96.0.10:5353", ""},
		{"another Service begins at the first zone again", 53, "10.96.0.99:53", "169.254.20.12:53"},
		{"IPv6", 53, "[fd00:10:96::a]:53", "[fd00::20:10]:53"},
		{"the Service directly", 0, "10.96.0.10:53", ""},
		{"a foreign zone", 55, "10.96.0.10:53", ""},
		{"a foreign Service", 53, "10.96.0.1:53", ""},
		{"the listen address itself", 53, "169.254.20.10:53", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, ok := ListenOf(pairs, tc.zone, netip.MustParseAddrPort(tc.dst))
			if text := got.String(); ok != (tc.want != "") || ok && text != tc.want {
				t.Errorf("ListenOf(%d, %s) = %s, %t; want %q", tc.zone, tc.dst, text, ok, tc.want)
			}
		})
	}
}
