package stacks

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testwait"
)

// idle starts goroutines that wait in a shallow function until the test ends.
func idle(t *testing.T, n int) {
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	for range n {
		go func() { <-stop }()
	}
}

// A query has room on the first stack of its goroutine, however many others wait.
func TestGoroutinesStartWithRoomForAQuery(t *testing.T) {
	Keep()
	for _, others := range []int{0, 50, 200} {
		idle(t, others)
		testwait.Until(t, 30*time.Second, "room for a query", func() error {
			runtime.GC()
			if size := startingSize(); size != room {
				return fmt.Errorf("beside %d others goroutines start with %d bytes, want %d", runtime.NumGoroutine(), size, room)
			}
			return nil
		})
	}
}

func TestAsManyWaitAsAreNeeded(t *testing.T) {
	for _, tc := range []struct {
		name       string
		have, want int
		size       uint64
	}{
		{"the first", 0, 4, 2 << 10},
		{"more", 16, 19, room / 2},
		{"many more", 16, 22, room / 4},
		{"no more than are useful", most, most, 2 << 10},
		{"enough", 16, 16, room},
		{"fewer", 16, 13, 2 * room},
		{"far fewer", 16, 10, 4 * room},
		{"none", 1, 0, 4 * room},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var h holders
			t.Cleanup(func() { h.hold(0) })
			h.hold(tc.have)
			if h.adjust(tc.size); len(h.release) != tc.want {
				t.Errorf("%d wait, want %d", len(h.release), tc.want)
			}
		})
	}
}
