//go:build privileged || load

package failover

import (
	"slices"
	"testing"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// withoutFailoverRule returns the chains without one rule, the first row whose result
// this changes, and the new result.
func withoutFailoverRule(t *testing.T, chain, rule, port int) (f iptables.Family, row int, given string, found bool) {
	t.Helper()
	chains := allFailoverChains(t)
	chains[chain].rules = slices.Delete(slices.Clone(chains[chain].rules), rule, rule+1)
	for _, f := range nfnl.Families {
		for i, tc := range failoverTraces {
			if got := mustTraceFailover(t, chains, f, i, port); got != failoverWant(f, tc.want, port) {
				return f, i, got, true
			}
		}
	}
	return 0, 0, "", false
}
