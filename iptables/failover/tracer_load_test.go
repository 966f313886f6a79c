//go:build load

package failover

import (
	"testing"
)

func TestEveryFailoverRuleHasARow(t *testing.T) {
	for c, chain := range allFailoverChains(t) {
		for r, rule := range chain.rules {
			if _, _, _, found := withoutFailoverRule(t, c, r, 4000); !found {
				t.Errorf("no row fails without chain %s: %s", chain.name, rule.text)
			}
		}
	}
}
