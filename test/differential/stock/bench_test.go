package stock

import (
	"testing"

	"github.com/coredns/coredns/plugin"

	"github.com/trackless-dns/trackless/test/differential/script"
)

func open(b *testing.B, next plugin.Handler) plugin.Handler {
	return script.Setup(b, "cache", script.BenchCorefile, next)
}

// BenchmarkPlugin is the counterpart of the benchmark of the same name a
// directory above.
func BenchmarkPlugin(b *testing.B) { script.BenchmarkHits(b, open) }

// BenchmarkMiss is the counterpart of the benchmark of the same name a
// directory above.
func BenchmarkMiss(b *testing.B) { script.BenchmarkMisses(b, open) }

// BenchmarkMemory reports the heap per cached A answer at 100,000 names.
func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		h := open(b, script.Shapes[0].Answer())
		b.ReportMetric(script.Memory(b, 100_000, h, func() int { return 0 }), "B/answer")
	}
}
