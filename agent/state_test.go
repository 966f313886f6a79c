package agent

import (
	"net/netip"
	"testing"

	"github.com/trackless-dns/trackless/iptables"
)

// TestFlowsOfOthers: the flows of an instance that serves other endpoints are not taken.
func TestFlowsOfOthers(t *testing.T) {
	listening := func(addrs ...string) string {
		var plan iptables.Plan
		for _, a := range addrs {
			plan.Listen = append(plan.Listen, iptables.Endpoint{Addr: netip.MustParseAddr(a), Port: 53, Proto: iptables.UDP})
		}
		var p Agent
		p.serving.Store(&Load{Plan: plan})
		return p.flows().Fingerprint
	}
	for name, row := range map[string]struct {
		other []string
		fits  bool
	}{
		"the same endpoints":  {[]string{"169.254.20.10", "fd00::10"}, true},
		"in another order":    {[]string{"fd00::10", "169.254.20.10"}, true},
		"another instance":    {[]string{"169.254.20.11"}, false},
		"one address is gone": {[]string{"169.254.20.10"}, false},
	} {
		if fits := listening("169.254.20.10", "fd00::10") == listening(row.other...); fits != row.fits {
			t.Errorf("%s: fits %v, want %v", name, fits, row.fits)
		}
	}
	if none := new(Agent).flows(); none.Fingerprint != "" {
		t.Errorf("without a load: %v fits", none)
	}
}
