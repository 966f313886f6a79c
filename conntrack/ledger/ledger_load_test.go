//go:build load

package ledger

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
)

// Packets of the same flows are noted on all processors, while others read the ledger and
// change its timeouts, and while Run starts and ends.
func TestConcurrentUse(t *testing.T) {
	t.Run("without Run", func(t *testing.T) { useConcurrently(t, New(Config{})) })
	t.Run("with Run", func(t *testing.T) {
		l := New(Config{})
		running(t, l)
		useConcurrently(t, l)
	})
	t.Run("with Run at times", func(t *testing.T) {
		l := New(Config{})
		ctx, cancel := context.WithCancel(t.Context())
		var runs sync.WaitGroup
		runs.Go(func() {
			for ctx.Err() == nil {
				short, stop := context.WithTimeout(ctx, 3*ms)
				l.Run(short)
				stop()
			}
		})
		useConcurrently(t, l)
		cancel()
		runs.Wait()
	})
}

func useConcurrently(t *testing.T, l *Ledger) {
	t.Helper()
	const flows, rounds = 20_000, 3
	var packets, others sync.WaitGroup
	for worker := range 4 {
		packets.Go(func() {
			for range rounds {
				for i := range uint32(flows) {
					f := benchFlow(i)
					switch i % 4 {
					case uint32(worker):
						l.Answered(f, benchFlow(i/2))
					case 0:
						l.Query(f)
						l.Response(f)
					default:
						l.Query(f).Response()
					}
				}
			}
		})
	}
	done := make(chan struct{})
	others.Go(func() {
		for last := uint64(0); ; {
			select {
			case <-done:
				return
			default:
			}
			made := l.Flows().Total()
			if entries := l.Entries().Total(); made < last || entries > flows {
				t.Errorf("%d flows after %d, %d entries", made, last, entries)
				return
			}
			last = made
			l.SetTimeouts(Timeouts{UDPStream: 180 * s})
		}
	})
	packets.Wait()
	close(done)
	others.Wait()
	if got := l.Entries(); got.UDP4 != flows || got.Total() != flows || got.SamplingRate != 1 {
		t.Errorf("%+v, want %d entries", got, flows)
	}
	if got := l.Flows().Total(); got != flows {
		t.Errorf("%d flows, want %d", got, flows)
	}
}

// New allocates all memory, and not more than Config says.
func TestMemory(t *testing.T) {
	for _, tt := range []struct {
		name     string
		maxBytes int
		atMost   uint64
	}{
		{"default", 0, DefaultMaxBytes},
		{"1 MB", 1_000_000, 1_000_000},
		{"too little", 1, 128 << 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var l *Ledger
			bytes := allocated(func() { l = New(Config{MaxBytes: tt.maxBytes}) })
			if bytes > tt.atMost || bytes < tt.atMost*9/10 {
				t.Errorf("New took %d bytes of %d", bytes, tt.atMost)
			}
			if bytes = allocated(func() {
				for i := range uint32(1_000_000) {
					l.Answered(benchFlow(i))
				}
			}); bytes > 64<<10 { // the runtime itself takes some meanwhile
				t.Errorf("a million flows took another %d bytes", bytes)
			}
			// Error is three standard errors, which one run in 370 exceeds; six, one in
			// 500 million.
			got := l.Entries()
			if off := float64(got.Total()) - 1e6; off < -2*got.Error || off > 2*got.Error {
				t.Errorf("%+v for a million flows", got)
			}
		})
	}
}

func TestNoAllocations(t *testing.T) {
	for _, run := range []bool{false, true} {
		t.Run(fmt.Sprintf("Run=%v", run), func(t *testing.T) {
			l := New(Config{})
			if run {
				l.tick.Store(1) // as Run does, without its own allocations
			}
			noAllocations(t, l)
		})
	}
}

func noAllocations(t *testing.T, l *Ledger) {
	t.Helper()
	batch := []Flow{benchFlow(1), benchFlow(2), benchFlow(3)}
	i := uint32(0)
	for name, do := range map[string]func(){
		"Query":             func() { l.Query(benchFlow(i)); i++ },
		"Response":          func() { l.Response(benchFlow(i)); i++ },
		"Query, Response":   func() { l.Query(benchFlow(i)).Response(); i++ },
		"Answered":          func() { l.Answered(benchFlow(i)); i++ },
		"Answered, a batch": func() { l.Answered(batch...) },
		"Entries":           func() { l.Entries() },
		"Flows":             func() { l.Flows() },
	} {
		if n := testing.AllocsPerRun(1000, do); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
