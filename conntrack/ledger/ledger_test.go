package ledger

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Without Config.Now the ledger goes by the clock of package time.
func TestOwnClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Hour)
		l := New(Config{})
		l.Answered(benchFlow(1))
		time.Sleep(29_999 * ms)
		if got := l.Entries().Total(); got != 1 {
			t.Errorf("%d entries before the timeout, want 1", got)
		}
		time.Sleep(1 * ms)
		if got := l.Entries().Total(); got != 0 {
			t.Errorf("%d entries after the timeout, want 0", got)
		}
	})
}

// Packets of the same flows on all processors, with everything else a daemon does
// meanwhile.
func TestConcurrentUse(t *testing.T) {
	l := New(Config{})
	const flows, rounds = 20_000, 3
	var packets, others sync.WaitGroup
	for worker := range 4 {
		packets.Go(func() {
			for range rounds {
				for i := range uint32(flows) {
					f := benchFlow(i)
					if i%4 == uint32(worker) {
						l.Answered(f, benchFlow(i/2))
						continue
					}
					l.Query(f)
					l.Response(f)
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

// All memory is taken by New, and is at most what Config says, whatever comes.
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
			got := l.Entries()
			if off := float64(got.Total()) - 1e6; off < -got.Error || off > got.Error {
				t.Errorf("%+v for a million flows", got)
			}
		})
	}
}

func TestNoAllocations(t *testing.T) {
	l := New(Config{})
	batch := []Flow{benchFlow(1), benchFlow(2), benchFlow(3)}
	i := uint32(0)
	for name, do := range map[string]func(){
		"Query":             func() { l.Query(benchFlow(i)); i++ },
		"Response":          func() { l.Response(benchFlow(i)); i++ },
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
