package nftables

import (
	"slices"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// A device that asked before the given time tells nothing of what came after it.
func TestLostOf(t *testing.T) {
	now := time.Now()
	type asked struct {
		device string
		ago    time.Duration
	}
	for _, tc := range []struct {
		name  string
		asked []asked
		after time.Time
		want  []string
	}{
		{name: "nobody asks"},
		{name: "two do not arrive", asked: []asked{{"pod2", time.Second}, {"pod0", 0}}, want: []string{"pod0", "pod2"}},
		{name: "the node itself", asked: []asked{{"lo", 0}}},
		{name: "one asked before", asked: []asked{{"pod0", time.Second}, {"pod1", 10 * time.Millisecond}}, after: now.Add(-time.Second / 2), want: []string{"pod1"}},
	} {
		var elements []nfnl.Element
		for _, a := range tc.asked {
			elements = append(elements, nfnl.Element{Key: nfnl.DeviceKey(a.device), Expires: askedFor - a.ago})
		}
		if got := lostOf(elements, now, tc.after); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v are lost, want %v", tc.name, got, tc.want)
		}
	}
}
