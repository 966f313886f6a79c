//go:build privileged

package policies

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/route"
)

// A legacy table changes without a new generation of the ruleset. So what was found before
// there was one says nothing about its rules.
func TestFirstLegacyRule(t *testing.T) {
	t.Parallel()
	testns.Enter(t)
	r := Reader{Lists: &route.Lists{}, Endpoints: func() []iptables.Endpoint {
		return []iptables.Endpoint{{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.UDP}}
	}}
	defer r.Close()
	if why := r.Why("lo", 1); why != "" {
		t.Fatalf("without rules: %s", why)
	}
	for _, step := range []struct {
		name, arguments, want string
	}{
		{"the first rule", "-A INPUT -p udp --dport 53 -j DROP", "chain INPUT of table ip filter of iptables-legacy may drop"},
		{"another rule in its place, of the same size", "-R INPUT 1 -p udp --dport 53 -j ACCEPT", ""},
		{"the first again", "-R INPUT 1 -p udp --dport 53 -j DROP", "chain INPUT of table ip filter of iptables-legacy may drop"},
		{"no rule any more", "-D INPUT -p udp --dport 53 -j DROP", ""},
	} {
		testns.Run(t, "iptables-legacy", strings.Fields("-w "+step.arguments)...)
		testwait.Until(t, 10*time.Second, step.name, func() error {
			if why := r.Why("lo", 1); !strings.HasPrefix(why, step.want) || step.want == "" && why != "" {
				return fmt.Errorf("%q, want %q", why, step.want)
			}
			return nil
		})
	}
}
