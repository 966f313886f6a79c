package policies

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/trackless-dns/trackless/iptables/route"
)

// A rule for one address must not be missed: behind a device with a route to a network
// anybody may be.
func TestClients(t *testing.T) {
	to := func(device uint32, prefix string) route.Route {
		return route.Route{To: netip.MustParsePrefix(prefix), Hops: []route.Hop{{Device: device}}}
	}
	got := clientsOf([]route.Route{
		to(1, "10.244.0.12/32"), to(1, "10.244.0.11/32"), to(1, "fd00::11/128"), to(1, "fe80::/64"),
		to(2, "10.244.1.3/32"), to(2, "10.244.1.0/24"), to(2, "fd00::12/128"),
		to(3, "0.0.0.0/0"),
	})
	want := map[uint32][]netip.Addr{
		1: {netip.MustParseAddr("10.244.0.11"), netip.MustParseAddr("10.244.0.12"), netip.MustParseAddr("fd00::11")},
		2: {netip.MustParseAddr("fd00::12")},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("clients %v, want %v", got, want)
	}
}
