package slowstart

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// How long a query waits.
const (
	patient   = 5 * time.Second
	impatient = 100 * time.Millisecond
)

// started are queries of a slow start: those that are asked, in the order in which they
// could be.
type started struct {
	Limit
	ending sync.WaitGroup

	mu     sync.Mutex
	leaves []func(answered bool)
}

// ask has n queries enter.
func (s *started) ask(n int, patience time.Duration) {
	for range n {
		s.ending.Go(func() {
			leave, ok := s.Enter(context.Background(), patience)
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
	s.Limit.mu.Lock()
	defer s.Limit.mu.Unlock()
	return len(s.queue)
}

func TestLimit(t *testing.T) {
	const many = 10 * firstAsks
	for _, tc := range []struct {
		name     string
		patience time.Duration
		then     func(*started)
		want     int
	}{
		{"nothing is answered", patient, func(*started) {}, firstAsks},
		{"some fail", patient, func(s *started) { s.end(3, false) }, firstAsks + 3},
		{"some are answered", patient, func(s *started) { s.end(answersPerAsk, true) }, firstAsks + answersPerAsk + 1},
		{"some end twice", patient, func(s *started) { s.end(3, false); s.end(3, false) }, firstAsks + 3},
		{"none ends", patient, func(*started) { time.Sleep(slotTime) }, 2 * firstAsks},
		{"some do not wait for long", impatient, func(*started) { time.Sleep(impatient) }, many},
		{"it is over", patient, func(*started) { time.Sleep(lasts) }, many},
		{"it begins again while it lasts", patient, func(s *started) { s.Begin() }, firstAsks},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s started
				s.ask(1, patient)
				if s.asked() != 1 {
					t.Fatal("held back although nothing has begun")
				}
				s.end(1, true)
				s.leaves = nil
				s.Begin()
				s.ask(many, tc.patience)
				tc.then(&s)
				if got := s.asked(); got != tc.want {
					t.Errorf("%d are asked, want %d", got, tc.want)
				}
				time.Sleep(2 * lasts)
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
func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s started
		s.Begin()
		s.ask(firstAsks, patient)
		s.ending.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), impatient)
		defer cancel()
		if _, ok := s.Enter(ctx, patient); ok {
			t.Error("asked although there is no room")
		}
		if s.queued() > 0 {
			t.Error("it waits on")
		}
		time.Sleep(2 * lasts)
	})
}
