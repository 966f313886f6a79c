package ledger

import (
	"context"
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

// At a low rate Run rests, after a high one too, and the ledger knows every packet.
func TestRunRestsAtALowRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Config{})
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { l.Run(ctx) })
		ask := func(queries uint32, every time.Duration) (worked bool) {
			for i := range queries {
				l.Query(benchFlow(i)).Response()
				time.Sleep(every)
				worked = worked || l.tick.Load() != 0
			}
			return worked
		}
		if ask(1000, 10*ms) {
			t.Error("Run works for 100 queries a second")
		}
		if !ask(busyPackets, ms/10) {
			t.Error("Run rests at 10,000 queries a second")
		}
		ask(300, 10*ms)
		if ask(1000, 10*ms) {
			t.Error("Run works for 100 queries a second, seconds after there were more")
		}
		if got := l.Entries().Total(); got != 1000 {
			t.Errorf("%d entries, want 1000", got)
		}
		cancel()
		run.Wait()
	})
}

// While Run is at work, packets wait in buffers. They are counted nevertheless, and the
// packets of a flow stay in their order.
func TestHandOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Config{})
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { l.Run(ctx) })

		synctest.Wait()
		first := l.Query(benchFlow(1))
		synctest.Wait()
		if l.tick.Load() != 0 {
			t.Error("Run works for a single packet")
		}
		for range busyPackets {
			l.Query(benchFlow(1))
		}
		synctest.Wait()
		if l.tick.Load() == 0 {
			t.Fatal("Run rests although there were many packets")
		}
		first.Response()
		second := l.Query(benchFlow(2))
		if got := l.Entries().Total(); got != 2 {
			t.Errorf("%d entries of which one is in a buffer, want 2", got)
		}
		time.Sleep(300 * ms)
		second.Response()
		for i := range uint32(10 * bufferRecords) {
			l.Query(benchFlow(3 + i)).Response()
		}
		if got, want := l.Flows().Total(), uint64(2+10*bufferRecords); got != want {
			t.Errorf("%d flows, want %d: buffers ran over", got, want)
		}
		// The same moment for all: a response that came to the table before its
		// query would make a stream of the next query.
		time.Sleep(29_995*ms - 300*ms)
		if got := l.Entries().Total(); got != 1+10*bufferRecords+1 {
			t.Errorf("%d entries shortly before the first expires", got)
		}
		time.Sleep(10 * ms)
		if got := l.Entries().Total(); got != 1+10*bufferRecords {
			t.Errorf("%d entries after the first has expired", got)
		}
		if l.tick.Load() != 0 {
			t.Error("Run works although the last packet was long ago")
		}
		time.Sleep(300*ms + handOver)
		if got := l.Entries().Total(); got != 0 {
			t.Errorf("%d entries after all have expired", got)
		}
		cancel()
		run.Wait()
	})
}
