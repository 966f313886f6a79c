// Command broken does not compile.
package main

import (
	"log/slog"
	"os"
)

var handler func() *slog.TextHandler = slog.NewTextHandler

func main() {
	handler().Handle(nil, slog.Record{})
	os.Exit(0)
}
