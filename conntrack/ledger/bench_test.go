package ledger

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var benchServer = netip.MustParseAddrPort("10.96.0.10:53")

// benchFlow returns the i-th of 2^32 UDP flows from as many clients as needed.
func benchFlow(i uint32) Flow {
	var ip [4]byte
	binary.BigEndian.PutUint32(ip[:], 10<<24|244<<16|i>>15&0xffff)
	return Flow{
		Proto:  unix.IPPROTO_UDP,
		Client: netip.AddrPortFrom(netip.AddrFrom4(ip), uint16(32768+i&0x7fff)),
		Server: benchServer,
	}
}

// BenchmarkHotPath measures the time that a listener needs to note a query while Run is at
// work on another processor. The batches are so small that no buffer is ever full.
// BenchmarkQuery includes the work of Run.
func BenchmarkHotPath(b *testing.B) {
	const batch = 128
	flows := make([]Flow, 1<<17)
	for i := range flows {
		flows[i] = benchFlow(uint32(i))
	}
	for _, way := range []struct {
		name string
		do   func(l *Ledger, flows []Flow)
	}{
		{"query, response", func(l *Ledger, flows []Flow) {
			for _, f := range flows {
				l.Query(f).Response()
			}
		}},
		{"answered, by 32", func(l *Ledger, flows []Flow) {
			for len(flows) > 0 {
				l.Answered(flows[:32]...)
				flows = flows[32:]
			}
		}},
	} {
		b.Run(way.name, func(b *testing.B) {
			l := New(Config{})
			l.tick.Store(1) // as Run does
			var hot time.Duration
			var queries int
			for b.Loop() {
				at := queries % len(flows)
				began := time.Now()
				way.do(l, flows[at:at+batch])
				hot += time.Since(began)
				queries += batch
				l.mu.Lock()
				l.drain()
				l.mu.Unlock()
			}
			b.ReportMetric(float64(hot.Nanoseconds())/float64(queries), "ns/query")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkQuery measures all work for a query of a live flow. The listeners keep all
// processors busy, so the work of Run is part of the time.
func BenchmarkQuery(b *testing.B) {
	for _, size := range []struct {
		name  string
		flows uint32
	}{
		{"1k", 1 << 10},
		{"128k", 1 << 17},
		{"1M", 1 << 20}, // sampled
	} {
		flows := make([]Flow, size.flows)
		for i := range flows {
			flows[i] = benchFlow(uint32(i))
		}
		for _, way := range []struct {
			name string
			run  bool
			do   func(l *Ledger, i uint32)
		}{
			{"query, response", true, func(l *Ledger, i uint32) {
				l.Query(flows[i%size.flows]).Response()
			}},
			{"answered, by 32", true, func(l *Ledger, i uint32) {
				if i%32 == 0 {
					at := i % size.flows
					l.Answered(flows[at : at+32]...)
				}
			}},
			{"query, response, without Run", false, func(l *Ledger, i uint32) {
				l.Query(flows[i%size.flows]).Response()
			}},
		} {
			b.Run(fmt.Sprintf("flows=%s/%s", size.name, way.name), func(b *testing.B) {
				l := New(Config{})
				if way.run {
					running(b, l)
				}
				l.Answered(flows...)
				b.ReportAllocs()
				b.ResetTimer()
				var workers atomic.Uint32
				b.RunParallel(func(pb *testing.PB) {
					for i := workers.Add(1) << 16; pb.Next(); i++ {
						way.do(l, i)
					}
				})
			})
		}
	}
}

// running has Run at work until the end of the test.
func running(t testing.TB, l *Ledger) {
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { l.Run(ctx) })
	t.Cleanup(func() { cancel(); run.Wait() })
	l.awake()
	for l.tick.Load() == 0 {
		runtime.Gosched()
	}
}

// BenchmarkFreshPort measures a query that makes an entry, and the removal of expired
// entries, at 20,000 queries a second.
func BenchmarkFreshPort(b *testing.B) {
	now := time.Now()
	l := New(Config{Now: func() time.Time { now = now.Add(50 * time.Microsecond); return now }})
	b.ReportAllocs()
	for i := uint32(0); b.Loop(); i++ {
		l.Answered(benchFlow(i))
	}
}

// BenchmarkEntries measures a scrape: with live entries, and after a load, when the whole
// table must be swept.
func BenchmarkEntries(b *testing.B) {
	const flows = 150_000
	b.Run("alive", func(b *testing.B) {
		l := New(Config{})
		for i := range uint32(flows) {
			l.Answered(benchFlow(i))
		}
		b.ReportAllocs()
		for b.Loop() {
			l.Entries()
		}
	})
	b.Run("expired", func(b *testing.B) {
		now := time.Now()
		l := New(Config{Now: func() time.Time { return now }})
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			for i := range uint32(flows) {
				l.Answered(benchFlow(i))
			}
			now = now.Add(45 * time.Second)
			b.StartTimer()
			l.Entries()
		}
	})
}

func BenchmarkFlows(b *testing.B) {
	l := New(Config{})
	b.ReportAllocs()
	for b.Loop() {
		l.Flows()
	}
}

// BenchmarkMillionFlows measures how well a million live flows are known.
func BenchmarkMillionFlows(b *testing.B) {
	const flows = 1_000_000
	var e Estimate
	b.ReportAllocs()
	for b.Loop() {
		l := New(Config{})
		for i := range uint32(flows) {
			l.Answered(benchFlow(i))
		}
		e = l.Entries()
	}
	b.ReportMetric(e.SamplingRate, "sampling-rate")
	b.ReportMetric(100*math.Abs(float64(e.Total())-flows)/flows, "%off")
	b.ReportMetric(100*e.Error/flows, "%bound")
}
