package warm

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/handover"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/engines"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// lookups looks names up until stop is set, 10,000 a second, and returns the 99th percentile
// of the time that a lookup takes.
func lookups(e *engine.Engine, keys []wire.Key, stop *atomic.Bool) time.Duration {
	var took []time.Duration
	var found engine.Found
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for i := 0; !stop.Load(); {
		<-tick.C
		for range 10 {
			begun := time.Now()
			e.Lookup(keys[i%len(keys)], begun, &found)
			took = append(took, time.Since(begun))
			i++
		}
	}
	slices.Sort(took)
	return took[len(took)*99/100]
}

// BenchmarkHandover gives a full cache of 32 MiB over the socket, while it is asked.
func BenchmarkHandover(b *testing.B) {
	options := engine.Options{Store: store.Options{Bytes: 32 << 20}}
	from := opened(b, options)
	e := entryOf(b, "www.example.org.", "192.0.2.1", from.Engine.Store().Time(time.Now()), 3600)
	var keys []wire.Key
	for i := range 220_000 {
		key := keyOf(b, fmt.Sprintf("name-number-%d.some-namespace.svc.cluster.local.", i), dns.TypeA)
		from.Engine.Store().Put(key, store.Positive, e)
		keys = append(keys, key)
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	peer := handover.Peer{Table: "bench-" + hex.EncodeToString(key[:8]), Key: key}
	caches := Caches{func() []engines.State { return []engines.State{from} }}
	server, err := handover.Listen(handover.NameOf(peer.Table), key, caches.Offers, func(handover.Given) {})
	if err != nil {
		b.Fatal(err)
	}
	defer server.Close(0)
	measured := func(during func()) time.Duration {
		var stop atomic.Bool
		p99 := make(chan time.Duration)
		go func() { p99 <- lookups(from.Engine, keys, &stop) }()
		during()
		stop.Store(true)
		return <-p99
	}
	alone := measured(func() { time.Sleep(300 * time.Millisecond) })
	var busy time.Duration
	var bytes int
	b.ReportAllocs()
	for b.Loop() {
		to := opened(b, options)
		wants := Caches{func() []engines.State { return []engines.State{to} }}.Wants()
		busy = max(busy, measured(func() {
			outcomes, s, err := handover.Take(peer, wants, time.Minute)
			if err != nil || outcomes[0].Result != handover.Taken {
				b.Fatal(outcomes, err)
			}
			bytes = outcomes[0].Bytes
			s.Close()
		}))
		to.Engine.Close()
	}
	b.ReportMetric(float64(bytes)/(1<<20), "MiB")
	b.ReportMetric(float64(alone.Nanoseconds()), "p99-alone-ns")
	b.ReportMetric(float64(busy.Nanoseconds()), "p99-during-ns")
}
