package services

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/iptables/failover"
)

// pairsOf reads "LISTEN>SERVICE" words.
func pairsOf(t *testing.T, text string) (out []failover.Pair) {
	t.Helper()
	for word := range strings.FieldsSeq(text) {
		listen, service, _ := strings.Cut(word, ">")
		out = append(out, failover.Pair{Listen: netip.MustParseAddr(listen), Service: netip.MustParseAddr(service)})
	}
	return out
}

func TestPairsOfOthersStay(t *testing.T) {
	for _, tc := range []struct {
		name, own, table, last, want string
	}{
		{"no table yet", "169.254.20.10>10.96.0.10", "", "", "169.254.20.10>10.96.0.10"},
		{"our own pair again", "169.254.20.10>10.96.0.10", "169.254.20.10>10.96.0.10", "", "169.254.20.10>10.96.0.10"},
		{"the Service has moved", "169.254.20.10>10.96.0.11", "169.254.20.10>10.96.0.10", "", "169.254.20.10>10.96.0.11"},
		{"another address of an earlier instance", "169.254.20.11>10.96.0.10", "169.254.20.10>10.96.0.10", "", "169.254.20.11>10.96.0.10 169.254.20.10>10.96.0.10"},
		{"another address family", "169.254.20.10>10.96.0.10", "fd00:90::10>fd00:96::a", "", "169.254.20.10>10.96.0.10 fd00:90::10>fd00:96::a"},
		{"flushed", "169.254.20.11>10.96.0.10", "", "169.254.20.11>10.96.0.10 169.254.20.10>10.96.0.10", "169.254.20.11>10.96.0.10 169.254.20.10>10.96.0.10"},
		{"removed by hand", "169.254.20.11>10.96.0.10", "169.254.20.11>10.96.0.10", "169.254.20.11>10.96.0.10 169.254.20.10>10.96.0.10", "169.254.20.11>10.96.0.10"},
		{"its address is a Service's now", "169.254.20.10>10.96.0.10", "10.96.0.10>10.96.0.99", "", "169.254.20.10>10.96.0.10"},
		{"its Service is a listen address now", "169.254.20.10>10.96.0.10", "169.254.20.11>169.254.20.10", "", "169.254.20.10>10.96.0.10"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table := failover.State{Pairs: pairsOf(t, tc.table), Present: tc.table != ""}
			got := standing(pairsOf(t, tc.own), table, pairsOf(t, tc.last))
			byAddr := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
			if diff := cmp.Diff(pairsOf(t, tc.want), slices.Clone(got), byAddr); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
