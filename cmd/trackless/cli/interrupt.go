package cli

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// UntilInterrupted returns a context that ends with ctx, with Ctrl-C, with
// SIGTERM, or with one of the further signals. Call stop when the work is done:
// the signals have their usual effect again.
func UntilInterrupted(ctx context.Context, further ...os.Signal) (interrupted context.Context, stop context.CancelFunc) {
	return signal.NotifyContext(ctx, append([]os.Signal{os.Interrupt, syscall.SIGTERM}, further...)...)
}
