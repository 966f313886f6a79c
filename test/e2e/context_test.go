//go:build e2e

package e2e

import (
	"context"
	"time"
)

// testContext is for cleanups, where the test's own context is over.
func testContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 3*time.Minute)
}
