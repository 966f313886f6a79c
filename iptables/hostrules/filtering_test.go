package hostrules

import (
	"net/netip"
	"testing"

	"github.com/google/nftables"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// kube-network-policies gives packets of pods to itself in a queue. For a firewall search the
// program accepts; a fast path must not answer in its place.
func TestAProgramDecides(t *testing.T) {
	base := nfnl.BaseChain{Family: nftables.TableFamilyINet, Table: "policies", Name: "c", Hook: nfnl.HookInput, Policy: nfnl.VerdictAccept}
	for _, row := range []struct {
		expression     string
		plain, careful bool // may drop
	}{
		{"counter", false, false},
		{"reject", true, true},
		{"queue", false, true},
		{"tproxy", false, true},
	} {
		for _, cautious := range []bool{false, true} {
			s := newSearch(nil, nil)
			s.ends, s.cautious = func(v verdicts) bool { return v&mayDrop != 0 }, cautious
			s.rules[chainID{base.Family, base.Table, base.Name}] = []nfnl.Rule{{Exprs: []nfnl.Expression{{Name: row.expression}}}}
			endpoint := iptables.Endpoint{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.UDP}
			found, err := s.dropping(base, "input", []iptables.Endpoint{endpoint}, []Device{{Name: "veth0", Index: 7}})
			want := row.plain && !cautious || row.careful && cautious
			if err != nil || (len(found) > 0) != want {
				t.Errorf("%s, cautious %v: %v, %v", row.expression, cautious, found, err)
			}
		}
	}
}
