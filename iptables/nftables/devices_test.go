package nftables

import (
	"slices"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// What the sets hold is compared only if both were read in time.
func TestLostOf(t *testing.T) {
	of := func(names ...string) (out []nfnl.Element) {
		for _, name := range names {
			out = append(out, nfnl.Element{Key: nfnl.DeviceKey(name)})
		}
		return out
	}
	for _, tc := range []struct {
		name           string
		asked, arrived []nfnl.Element
		took           time.Duration
		want           []string
	}{
		{name: "nobody asks"},
		{name: "all arrive", asked: of("pod0", "pod1"), arrived: of("pod1", "pod0")},
		{name: "arrived, and does not ask now", arrived: of("pod0")},
		{name: "two do not arrive", asked: of("pod2", "pod0", "pod1"), arrived: of("pod1"), want: []string{"pod0", "pod2"}},
		{name: "the node itself", asked: of("lo")},
		{name: "read with a pause that is no matter", asked: of("pod0"), took: 50 * time.Millisecond, want: []string{"pod0"}},
		{name: "read before and after we were stopped", asked: of("pod0"), took: arrivedFor - askedFor},
	} {
		if got := lostOf(tc.asked, tc.arrived, tc.took); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v are lost, want %v", tc.name, got, tc.want)
		}
	}
}
