//go:build privileged

package nodestate

import (
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
)

// Whatever is changed shows, and nothing else does.
func TestStateShowsEveryChange(t *testing.T) {
	for _, tc := range []struct {
		name, command string
		want          string // the command that shows it, and the line
	}{
		{"an address", "ip address add 169.254.20.10/32 dev lo", "`ip address show`"},
		{"a route", "ip route add local 10.96.0.10 dev lo table local proto 84", "`ip route show table all`"},
		{"a route of IPv6", "ip -6 route add local fd00::a dev lo table local", "`ip -6 route show table all`"},
		{"a rule", "ip rule add fwmark 1 lookup 100", "`ip rule show`"},
		{"a rule of IPv6", "ip -6 rule add fwmark 1 lookup 100", "`ip -6 rule show`"},
		{"a table", "nft add table inet t", "`nft list ruleset`"},
		{"a chain of iptables-nft", "iptables-nft -t raw -N TRACKLESS", "`iptables-nft-save`"},
		{"a chain of iptables-legacy", "iptables-legacy -t raw -N TRACKLESS", "`iptables-legacy-save`"},
		{"a chain of ip6tables-legacy", "ip6tables-legacy -t raw -N TRACKLESS", "`ip6tables-legacy-save`"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			testns.Enter(t)
			before, err := Read()
			if err != nil {
				t.Fatal(err)
			}
			again, err := Read()
			if err != nil || before.Diff(again) != "" {
				t.Fatalf("nothing was changed: %v\n%s", err, before.Diff(again))
			}
			words := strings.Fields(tc.command)
			testns.Run(t, words[0], words[1:]...)
			now, err := Read()
			if err != nil {
				t.Fatal(err)
			}
			if got := before.Diff(now); !strings.Contains(got, tc.want) || !strings.Contains(got, "\n+ ") {
				t.Errorf("want a line of %s in\n%s", tc.want, got)
			}
		})
	}
}
