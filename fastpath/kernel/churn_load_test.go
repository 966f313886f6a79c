//go:build privileged && load

package kernel

import (
	"testing"
	"time"
)

// A million replies, each verified, while answers are replaced 50,000 times a second.
func TestLongChurn(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long under the race detector")
	}
	churn(t, 64, 1_000_000, 50_000*removeEvery/(removeEvery-1), 5*time.Minute)
}
