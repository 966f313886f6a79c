package cache

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// started are queries of a slow start: those that are asked, in the order in which they
// could be.
type started struct {
	slowStart
	ending sync.WaitGroup

	mu     sync.Mutex
	leaves []func(answered bool)
}

// ask has n queries enter.
func (s *started) ask(n int, patience time.Duration) {
	for range n {
		s.ending.Go(func() {
			leave, ok := s.enter(context.Background(), patience)
			if !ok {
				return
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.leaves = append(s.leaves, leave)
		})
	}
	synctest.Wait()
}

// asked is how many are asked now, or were.
func (s *started) asked() int {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.leaves)
}

func (s *started) queued() int {
	s.slowStart.mu.Lock()
	defer s.slowStart.mu.Unlock()
	return len(s.queue)
}

func TestSlowStart(t *testing.T) {
	const many = 10 * firstAsks
	for _, tc := range []struct {
		name     string
		patience time.Duration
		then     func(*started)
		want     int
	}{
		{"nothing is answered", askTimeout, func(*started) {}, firstAsks},
		{"some fail", askTimeout, func(s *started) { s.end(3, false) }, firstAsks + 3},
		{"some are answered", askTimeout, func(s *started) { s.end(answersPerAsk, true) }, firstAsks + answersPerAsk + 1},
		{"some end twice", askTimeout, func(s *started) { s.end(3, false); s.end(3, false) }, firstAsks + 3},
		{"none ends", askTimeout, func(*started) { time.Sleep(slotTime) }, 2 * firstAsks},
		{"some do not wait for long", newPatience, func(*started) { time.Sleep(newPatience) }, many},
		{"it is over", askTimeout, func(*started) { time.Sleep(slowStartFor) }, many},
		{"it begins again while it lasts", askTimeout, func(s *started) { s.begin() }, firstAsks},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s started
				s.ask(1, askTimeout)
				if s.asked() != 1 {
					t.Fatal("held back although nothing has begun")
				}
				s.end(1, true)
				s.leaves = nil
				s.begin()
				s.ask(many, tc.patience)
				tc.then(&s)
				if got := s.asked(); got != tc.want {
					t.Errorf("%d are asked, want %d", got, tc.want)
				}
				time.Sleep(2 * slowStartFor)
				s.ending.Wait()
				if n := s.queued(); n > 0 || s.active.Load() {
					t.Errorf("it goes on, with %d in the queue", n)
				}
			})
		})
	}
}

// end ends the first of those that are asked.
func (s *started) end(n int, answered bool) {
	s.mu.Lock()
	leaves := slices.Clone(s.leaves[:n])
	s.mu.Unlock()
	for _, leave := range leaves {
		leave(answered)
	}
}

// A client that goes away while it waits leaves nothing behind.
func TestSlowStartIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s started
		s.begin()
		s.ask(firstAsks, askTimeout)
		s.ending.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), newPatience)
		defer cancel()
		if _, ok := s.enter(ctx, askTimeout); ok {
			t.Error("asked although there is no room")
		}
		if s.queued() > 0 {
			t.Error("it waits on")
		}
		time.Sleep(2 * slowStartFor)
	})
}
