// Command sound compiles.
package main

import (
	"context"
	"log/slog"
	"os"
)

var handler = func() slog.Handler { return slog.NewTextHandler(os.Stdout, nil) }

func main() {
	if handler().Handle(context.Background(), slog.Record{}) != nil {
		os.Exit(1)
	}
}
