//go:build load

package nftables

import (
	"testing"
)

// The table notices when any rule is missing.
func TestEveryRuleHasARow(t *testing.T) {
	for _, id := range allRules() {
		if _, _, given := id.biting(t); given == nil {
			t.Errorf("no row fails without %s", id)
		}
	}
}
