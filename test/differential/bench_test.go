//go:build load

package differential

import (
	"testing"
	"time"

	"github.com/coredns/coredns/plugin"

	"github.com/trackless-dns/trackless/plugin/cache"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
	"github.com/trackless-dns/trackless/test/differential/script"
)

func open(b *testing.B, next plugin.Handler) plugin.Handler {
	c := script.Setup(b, "cache", script.BenchCorefile, next).(*cache.Cache)
	if err := c.Open(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	return c
}

// BenchmarkPlugin measures hits through the plugin interface; go test ./stock
// measures CoreDNS's cache the same way.
func BenchmarkPlugin(b *testing.B) { script.BenchmarkHits(b, open) }

// BenchmarkMiss measures misses, less the upstream.
func BenchmarkMiss(b *testing.B) { script.BenchmarkMisses(b, open) }

// BenchmarkWire measures hits from bytes to bytes, which CoreDNS's cache
// has no counterpart for: compare with its hits from message to message.
func BenchmarkWire(b *testing.B) {
	for _, shape := range script.Shapes {
		queries := script.Queries(10_000, shape.QType())
		h := open(b, shape.Answer())
		script.Fill(b, h, queries)
		e := h.(*cache.Cache).Engine()
		packed := make([][]byte, len(queries))
		for i, q := range queries {
			var err error
			if packed[i], err = q.Pack(); err != nil {
				b.Fatal(err)
			}
		}
		now := time.Now()
		reply := func(q *wire.Query, dst, msg []byte) {
			if q.Parse(msg) != wire.Plain {
				b.Error("query is not plain")
			}
			if _, result := e.Reply(dst, msg, q, now); result != engine.Success && result != engine.Denial {
				b.Error("no hit")
			}
		}
		b.Run(shape.Name+"/serial", func(b *testing.B) {
			var q wire.Query
			dst := make([]byte, 1232)
			b.ReportAllocs()
			defer script.CPU(b)()
			i := 0
			for b.Loop() {
				reply(&q, dst, packed[i%len(packed)])
				i += 7919
			}
		})
		b.Run(shape.Name+"/parallel", func(b *testing.B) {
			b.ReportAllocs()
			defer script.CPU(b)()
			b.RunParallel(func(pb *testing.PB) {
				var q wire.Query
				dst := make([]byte, 1232)
				for i := 0; pb.Next(); i += 7919 {
					reply(&q, dst, packed[i%len(packed)])
				}
			})
		})
	}
}

// BenchmarkMemory reports the memory per cached A answer at 100,000 names,
// on the heap and outside of it.
func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		h := open(b, script.Shapes[0].Answer())
		b.ReportMetric(script.Memory(b, 100_000, h, h.(*cache.Cache).Engine().Store().Bytes), "B/answer")
	}
}
