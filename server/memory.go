package server

import (
	"os"
	"runtime/debug"

	clog "github.com/coredns/coredns/plugin/pkg/log"

	"github.com/trackless-dns/trackless/internal/cgroup"
)

const (
	// One part in so many of the control group's limit is for the program's own
	// pages and for memory that the kernel charges to us, such as socket buffers,
	// and neither for Go's heap nor for answers. Exec probes run in the same group,
	// so that it is at least 16 MiB, or a quarter of a small limit.
	memoryForOthers    = 10
	minMemoryForOthers = 16 << 20

	// Answers lie outside of Go's heap, in at most this part and at most this
	// much, unless `cache` has a size of its own.
	memoryForAnswers    = 4
	maxMemoryForAnswers = 32 << 20
)

// memoryLimit returns what the Go runtime may use (package runtime/debug,
// SetMemoryLimit) where the control group allows limit bytes in all.
func memoryLimit(limit int64) int64 {
	others := max(limit/memoryForOthers, min(minMemoryForOthers, limit/4))
	return limit - others - min(limit/memoryForAnswers, maxMemoryForAnswers)
}

// respectMemoryLimit makes the garbage collector work harder before the kernel
// would kill the process. An explicit GOMEMLIMIT wins.
func respectMemoryLimit(root string) {
	if env := os.Getenv("GOMEMLIMIT"); env != "" {
		clog.Infof("memory: GOMEMLIMIT=%s", env)
		return
	}
	limit := cgroup.MemoryLimit(root)
	if limit == 0 {
		return
	}
	own := memoryLimit(limit)
	debug.SetMemoryLimit(own)
	clog.Infof("memory: the control group allows %d MiB, of which the heap takes up to %d MiB", limit>>20, own>>20)
}
