package route

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A device is an uplink by the size of the public address space of all its routes.
func TestUplinksByPieces(t *testing.T) {
	// All public addresses, in the prefixes that are usual for AllowedIPs.
	const notPrivate = `0.0.0.0/5 8.0.0.0/7 11.0.0.0/8 12.0.0.0/6 16.0.0.0/4 32.0.0.0/3 64.0.0.0/2 128.0.0.0/3
		160.0.0.0/5 168.0.0.0/6 172.0.0.0/12 172.32.0.0/11 172.64.0.0/10 172.128.0.0/9 173.0.0.0/8 174.0.0.0/7 176.0.0.0/4 192.0.0.0/9`
	for _, tc := range []struct {
		name, prefixes string
		want           bool
	}{
		{"all that is not private", notPrivate, true},
		{"a quarter", "64.0.0.0/2", true},
		{"two /8", "8.0.0.0/8 9.0.0.0/8", true},
		{"a /8 that a site uses as if it were private", "11.0.0.0/8", false},
		{"the same and parts of it", "11.0.0.0/8 11.0.0.0/9 11.128.0.0/9 11.0.0.0/8", false},
		{"all private networks", "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10", false},
		{"multicast and what is reserved", "224.0.0.0/4 240.0.0.0/4", false},
		{"the first piece of IPv6", "2000::/4", true},
		{"what registries have in IPv6", "2001::/16 2400::/12 2600::/12 2800::/12 2a00::/12", true},
		{"6to4", "2002::/16", false},
		{"a site of IPv6", "2001:db8::/32 fd00::/8 fe80::/10 ff00::/8", false},
	} {
		var routes []Route
		for _, p := range strings.Fields(tc.prefixes) {
			routes = append(routes, Route{To: netip.MustParsePrefix(p), Table: Main, Hops: []Hop{{Device: 7}}})
		}
		if got := slices.Equal(Uplinks(routes), []uint32{7}); got != tc.want {
			t.Errorf("%s: an uplink %t, want %t", tc.name, got, tc.want)
		}
	}
}

// Kernels with VRF devices have one rule for the tables of all of them.
func TestTablesOfVRFs(t *testing.T) {
	rule := make([]byte, fibRuleHeader)
	rule[0], rule[7] = unix.AF_INET, fibRuleToTable
	rule = append(rule, encode(t, func(ae *netlink.AttributeEncoder) { ae.Uint8(fibRuleL3MDev, 1) })...)
	used, devices := usedTables([][]byte{rule})
	if !devices || len(used) != 2 {
		t.Errorf("tables %v, of VRF devices %t", used, devices)
	}
	for kind, want := range map[string]uint32{"vrf": 1001, "bond": 0} {
		link := append(make([]byte, unix.SizeofIfInfomsg), encode(t, func(ae *netlink.AttributeEncoder) {
			ae.Nested(unix.IFLA_LINKINFO, func(info *netlink.AttributeEncoder) error {
				info.String(unix.IFLA_INFO_KIND, kind)
				info.Nested(unix.IFLA_INFO_DATA, func(data *netlink.AttributeEncoder) error {
					data.Uint32(1, 1001)
					return nil
				})
				return nil
			})
		})...)
		if got := vrfTable(link); got != want {
			t.Errorf("a link of kind %s has the table %d, want %d", kind, got, want)
		}
	}
}

func encode(t *testing.T, f func(*netlink.AttributeEncoder)) []byte {
	t.Helper()
	ae := netlink.NewAttributeEncoder()
	f(ae)
	b, err := ae.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}
