package admission

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestQueryLimit(t *testing.T) {
	for _, tc := range []struct {
		name   string
		memory int64
		want   int32
	}{
		{"no limit", math.MaxInt64, 16384},
		{"a container of 128 MiB", 80 << 20, 1280},
		{"hardly any memory", 1 << 20, 256},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := queryLimit(tc.memory); got != tc.want {
				t.Errorf("%d, want %d", got, tc.want)
			}
		})
	}
}

// flooder returns two clients that do not share counters.
func flooder() (flooder, other netip.Addr) {
	flooder = netip.MustParseAddr("10.244.0.1")
	for other = flooder.Next(); ; other = other.Next() {
		if slotOf(other) != slotOf(flooder) {
			return flooder, other
		}
	}
}

// begin begins a miss, and returns what ends it.
func begin(t *testing.T, u *Queries, client netip.Addr, taken bool) (end func()) {
	t.Helper()
	began, over, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		_, err := u.Pass(context.Background(), Miss{Client: client, Taken: taken}, func(context.Context) (int, error) {
			close(began)
			<-over
			return 0, nil
		})
		if err != nil {
			t.Error(err)
		}
	}()
	<-began
	return func() {
		close(over)
		<-ended
	}
}

// A plugin below bounds the misses, too: no client may have all that it lets pass.
func TestMissesUnderWayAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u Queries
		greedy, other := flooder()
		for _, tc := range []struct{ most, want int }{
			{0, int(queryLimit(memoryLimit()))}, {1000, 1000}, {math.MaxInt32, int(queryLimit(memoryLimit()))},
		} {
			if u.AtMost(tc.most); u.Misses().Figures().Limit != tc.want {
				t.Errorf("at most %d: %+v, want %d", tc.most, u.Misses().Figures(), tc.want)
			}
		}
		u.AtMost(16)
		over := make(chan struct{})
		for range 20 {
			go func() {
				_, _ = u.Pass(t.Context(), Miss{Client: greedy}, func(context.Context) (int, error) { <-over; return 0, nil })
			}()
		}
		synctest.Wait()
		begin(t, &u, other, false)()
		close(over)
	})
}

func TestBusyQueriesAreBounded(t *testing.T) {
	for _, tc := range []struct {
		name    string
		late    bool
		waiting int // misses of the greedy client
		want    int
	}{
		{"goroutines run in time", false, 0, int(queryLimit(memoryLimit()))},
		{"goroutines run late", true, 0, clientHere},
		{"misses that wait are not busy", false, 100, int(queryLimit(memoryLimit())) + 100},
		{"new misses count while goroutines run late", true, 40, clientHere},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var u Queries
			u.late.Store(tc.late)
			u.watching.Store(true) // so that watch does not start
			u.since.Store(time.Now().Add(time.Hour).UnixNano())
			greedy, other := flooder()
			taken := 0
			for range tc.waiting {
				if !u.Take(greedy) {
					t.Fatal("not taken")
				}
				taken++
				begin(t, &u, greedy, true)
			}
			for u.Take(greedy) {
				taken++
			}
			if taken != tc.want || u.shed.Load() != 1 {
				t.Errorf("%d taken and %d dropped, want %d and 1", taken, u.shed.Load(), tc.want)
			}
			if !u.Take(other) {
				t.Error("another client's query was dropped")
			}
			u.Done(greedy)
			if !u.Take(greedy) {
				t.Error("dropped although one has ended")
			}
		})
	}
}

func TestLateGoroutinesAreNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u Queries
		greedy, _ := flooder()
		for range clientHere + 1 {
			u.Take(greedy)
		}
		if !u.watching.Load() {
			t.Fatal("watch does not run")
		}
		time.Sleep(time.Second)
		if u.late.Load() {
			t.Error("goroutines count as late, but run in time")
		}
		for range clientHere + 1 {
			u.Done(greedy)
		}
		time.Sleep(time.Second)
		if u.watching.Load() {
			t.Error("watch runs although no query is busy")
		}
	})
}

// A client that is alone keeps nobody waiting. Others are known although nobody watched.
func TestAClientAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u Queries
		client, other := flooder()
		taken := func(c netip.Addr) {
			u.Take(c)
			u.Done(c)
		}
		missed := func(c netip.Addr) { begin(t, &u, c, false)() }
		for step, tc := range []struct {
			after  time.Duration
			ask    func(netip.Addr)
			client netip.Addr
			mixed  bool
		}{
			{0, taken, client, false},
			{mixedFor, taken, client, false},
			{0, missed, netip.Addr{}, false}, // the cache asks by itself
			{0, taken, other, true},
			{mixedFor - 1, taken, other, true},
			{1, taken, other, false},
			{0, u.Asks, client, true},
			{mixedFor, missed, client, false},
			{0, missed, other, true},
		} {
			time.Sleep(tc.after)
			if tc.ask(tc.client); u.isMixed() != tc.mixed {
				t.Errorf("step %d: several clients: %t", step, !tc.mixed)
			}
		}
		time.Sleep(2 * slow) // the ticks end
	})
}

// Being late is reported once for each time that a client is greedy, when it has lasted.
func TestLateGoroutinesAreToldOfOnce(t *testing.T) {
	var u Queries
	var told []bool
	u.Late = func(late bool) { told = append(told, late) }
	var now time.Time
	for step, tc := range []struct {
		after time.Duration
		late  bool
		want  []bool
	}{
		{0, false, nil},
		{time.Second, true, nil},
		{shortAfter - 1, true, nil},
		{0, false, nil}, // a burst
		{1, true, nil},
		{shortAfter, true, []bool{true}},
		{time.Second, true, []bool{true}},
		{time.Second, false, []bool{true}},
		{1, true, []bool{true}},
	} {
		now = now.Add(tc.after)
		if u.note(now, tc.late); !slices.Equal(told, tc.want) || u.late.Load() != tc.late {
			t.Errorf("step %d: told %v, and late: %v", step, told, u.late.Load())
		}
	}
	u.endNotes()
	u.endNotes()
	if u.late.Load() || !slices.Equal(told, []bool{true, false}) {
		t.Errorf("told %v, and in the end late: %v", told, u.late.Load())
	}
}

// Queries that a lock holds up need no processor, so they make no client greedy when they
// go on and goroutines run late for it.
func TestStuckQueriesMakeNoClientGreedy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u Queries
		client, _ := flooder()
		for i := range 4 * clientHere {
			if !u.Take(client) {
				t.Fatalf("query %d was dropped, and goroutines run in time", i)
			}
		}
		time.Sleep(2 * beginWindow)
		synctest.Wait() // watch wakes at the same time
		u.late.Store(true)
		taken := 0
		for u.Take(client) {
			taken++
		}
		if taken != clientHere {
			t.Errorf("%d queries are taken beside those that are stuck, want %d", taken, clientHere)
		}
		for range 4 * clientHere {
			u.Done(client) // the lock is free
		}
		if u.Take(client) {
			t.Error("taken, although those that came now are too many")
		}
		for range clientHere {
			u.Done(client)
		}
		time.Sleep(time.Second)
	})
}

// Misses of every client wait for an upstream that does not answer. They are no reason to
// drop the next query, even while goroutines run late.
func TestWaitingMakesNoClientGreedy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u Queries
		client, _ := flooder()
		var ends []func()
		for range 4 * clientHere {
			if !u.Take(client) {
				t.Fatal("dropped while goroutines run in time")
			}
			ends = append(ends, begin(t, &u, client, true))
		}
		time.Sleep(3 * lateFor)
		synctest.Wait()
		u.late.Store(true)
		taken := 0
		for u.Take(client) {
			taken++
		}
		if taken != clientHere {
			t.Errorf("%d queries are taken beside the waiting ones, want %d", taken, clientHere)
		}
		for _, end := range ends {
			end()
			u.Done(client)
		}
		for range taken {
			u.Done(client)
		}
		time.Sleep(3 * lateFor)
		if all := u.begun[0].all.Load() + u.begun[1].all.Load(); all != 0 {
			t.Errorf("%d misses are counted after all have ended", all)
		}
	})
}

func TestMissesThatTakeLongAreNoticed(t *testing.T) {
	for _, tc := range []struct {
		takes time.Duration
		want  bool
	}{
		{slow / 2, false},
		{slow - time.Millisecond, false},
		{2 * slow, true},
		{time.Second, true},
	} {
		t.Run(fmt.Sprint(tc.takes), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var u Queries
				var noticed atomic.Int32
				u.Slow = func() { noticed.Add(1) }
				client := netip.MustParseAddr("10.244.0.1")
				for range 20 { // one after the other, so that one is always under way
					end := begin(t, &u, client, false)
					time.Sleep(tc.takes)
					end()
				}
				time.Sleep(4 * slow)
				if (noticed.Load() > 0) != tc.want {
					t.Errorf("noticed %d times", noticed.Load())
				}
				if u.ticking.Load() {
					t.Error("it ticks although no miss is under way")
				}
			})
		})
	}
}

func BenchmarkTake(b *testing.B) {
	var u Queries
	client := netip.MustParseAddr("10.244.0.1")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if u.Take(client) {
				u.Done(client)
			}
		}
	})
}
