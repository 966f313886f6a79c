package firewall

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
)

func TestExplain(t *testing.T) {
	a := netip.MustParseAddr("10.96.0.10")
	for _, tc := range []struct {
		name  string
		rules string
		want  []string
	}{
		{name: "nothing in the way"},
		{
			name:  "an accept, a NOTRACK and a drop",
			rules: "-A PREROUTING -p udp --dport 53 -j ACCEPT\n-A OUTPUT -d 10.96.0.10 -p tcp --dport 53 -j CT --notrack\n-A OUTPUT -s 10.96.0.10 -m mark --mark 1 -j DROP\n",
			want: []string{
				"chain PREROUTING of table ip raw accept the queries (meta l4proto udp th dport 53 accept)",
				"chain OUTPUT of table ip raw notrack the queries",
				"chain OUTPUT of table ip raw may drop the responses",
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			testns.Enter(t)
			if tc.rules != "" {
				testns.Program(t, "iptables-nft-restore")
				cmd := exec.Command("iptables-nft-restore")
				cmd.Stdin = strings.NewReader("*raw\n" + tc.rules + "COMMIT\n")
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
			}
			got := Explain(a)
			// Programs of the host's are named as well.
			if strings.Contains(got, "chain ") != (tc.rules != "") {
				t.Errorf("%q", got)
			}
			for _, want := range tc.want {
				if !strings.Contains(got, want) {
					t.Errorf("%q lacks %q", got, want)
				}
			}
		})
	}
}
