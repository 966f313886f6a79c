//go:build privileged

package firewall

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testgolden"
	"github.com/trackless-dns/trackless/internal/testns"
)

func TestExplain(t *testing.T) {
	testns.Enter(t)
	testns.Program(t, "iptables-nft-restore")
	a := netip.MustParseAddr("10.96.0.10")
	if found := conflicts(a); len(found) > 0 {
		t.Fatalf("conflicts without rules: %q", found)
	}
	cmd := exec.Command("iptables-nft-restore")
	cmd.Stdin = strings.NewReader(`*raw
-A PREROUTING -p udp --dport 53 -j ACCEPT
-A OUTPUT -d 10.96.0.10 -p tcp --dport 53 -j CT --notrack
-A OUTPUT -s 10.96.0.10 -m mark --mark 1 -j DROP
COMMIT
`)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	found := conflicts(a)
	testgolden.Compare(t, "conflicts.txt", strings.Join(found, "\n")+"\n")
	if got := Explain(a); !strings.Contains(got, strings.Join(found, "; ")) {
		t.Errorf("%q lacks the conflicts", got)
	}
}
