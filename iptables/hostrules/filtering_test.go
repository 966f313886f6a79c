package hostrules

import (
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// kube-network-policies gives packets of pods to itself in a queue. For a firewall search the
// program accepts; a fast path must not answer in its place.
func TestAProgramDecides(t *testing.T) {
	base := nfnl.BaseChain{Family: nftables.TableFamilyINet, Table: "policies", Name: "c", Hook: nfnl.HookInput, Policy: nfnl.VerdictAccept}
	for _, row := range []struct {
		expression     string
		target         string // of iptables
		plain, careful bool   // may drop
	}{
		{"counter", "", false, false},
		{"reject", "", true, true},
		{"queue", "", false, true},
		{"tproxy", "", false, true},
		{"target", "MARK", false, false},
		{"target", "NOTRACK", false, false},
		{"target", "TPROXY", false, true},
		{"target", "NOVEL", false, true},
	} {
		for _, cautious := range []bool{false, true} {
			expression := nfnl.Expression{Name: row.expression}
			if row.target != "" {
				expression.Attrs = map[uint16][]byte{unix.NFTA_TARGET_NAME: append([]byte(row.target), 0)}
			}
			s := newSearch(nil, nil)
			s.ends, s.cautious = func(v verdicts) bool { return v&mayDrop != 0 }, cautious
			s.rules[chainID{base.Family, base.Table, base.Name}] = []nfnl.Rule{{Exprs: []nfnl.Expression{expression}}}
			endpoint := iptables.Endpoint{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.UDP}
			found, err := s.dropping(base, "input", []iptables.Endpoint{endpoint}, []Device{{Name: "veth0", Index: 7}})
			want := row.plain && !cautious || row.careful && cautious
			if err != nil || (len(found) > 0) != want {
				t.Errorf("%s %s, cautious %v: %v, %v", row.expression, row.target, cautious, found, err)
			}
		}
	}
}
