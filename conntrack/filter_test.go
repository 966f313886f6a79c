package conntrack_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/internal/testgolden"
)

func prefixes(list ...string) []netip.Prefix {
	p := make([]netip.Prefix, 0, len(list))
	for _, s := range list {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

func ptr[T any](v T) *T { return &v }

func TestFilterThatCannotMatch(t *testing.T) {
	golden := testgolden.NewRows(t, "filters.golden")
	for _, test := range []struct {
		name   string
		filter conntrack.Filter
	}{
		{"status both ways", conntrack.Filter{Status: conntrack.StatusAssured, NotStatus: conntrack.StatusAssured}},
		{"family and address", conntrack.Filter{Family: conntrack.FamilyIPv6, Src: prefixes("10.0.0.0/8")}},
		{"mixed families", conntrack.Filter{Src: prefixes("10.0.0.0/8"), Dst: prefixes("fd00::/8")}},
		{"ports of icmp", conntrack.Filter{Protocols: []conntrack.Protocol{conntrack.ICMP}, DstPorts: []conntrack.PortRange{{53, 53}}}},
		{"dns over sctp", conntrack.Filter{Protocols: []conntrack.Protocol{conntrack.SCTP}, DNS: true}},
		{"icmpv6 over ipv4", conntrack.Filter{Family: conntrack.FamilyIPv4, Protocols: []conntrack.Protocol{conntrack.ICMPv6}}},
		{"empty range", conntrack.Filter{DstPorts: []conntrack.PortRange{{54, 53}}}},
		{"mark outside mask", conntrack.Filter{Mark: ptr(uint32(3)), MarkMask: 1}},
		{"unknown state", conntrack.Filter{States: []string{"HALF_OPEN"}}},
		{"state of another protocol", conntrack.Filter{Protocols: []conntrack.Protocol{conntrack.UDP}, States: []string{"time_wait"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			golden.Compare(t, test.name, fmt.Sprint(test.filter.Validate()))
		})
	}
}
