// Package slowstart bounds how many queries are asked at a time of an upstream that has
// just come back. Thousands may wait for it by then, and each would open a connection:
// the handshakes keep each other from ending, and all of them time out. So it begins with
// a few, whose connections the next ones use, and lets more in as answers come.
package slowstart

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Limit is that of one upstream. The zero value bounds nothing.
type Limit struct {
	active atomic.Bool

	mu      sync.Mutex
	epoch   int // counts the starts
	limit   int
	running int
	answers int
	queue   []chan struct{} // closed for who may go on
}

const (
	// firstAsks is how many may be asked at first. The limit grows by one with every
	// answersPerAsk answers: 2,500 queries have their answers in the blink of an eye
	// from an upstream nearby, with 350 connections, and in a second from one that takes
	// 50 ms.
	firstAsks     = 32
	answersPerAsk = 8

	// lasts is how long there is a limit.
	lasts = 2 * time.Second

	// slotTime is how long a query that is not answered keeps others waiting.
	slotTime = 500 * time.Millisecond
)

// Begin notes that the upstream has come back.
func (s *Limit) Begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active.Load() {
		return
	}
	s.epoch++
	epoch := s.epoch
	s.limit, s.running, s.answers = firstAsks, 0, 0
	s.active.Store(true)
	time.AfterFunc(lasts, func() { s.end(epoch) })
}

func (s *Limit) end(epoch int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch == epoch {
		s.stop()
	}
}

// stop lets all go on.
func (s *Limit) stop() {
	s.active.Store(false)
	for _, next := range s.queue {
		close(next)
	}
	s.queue = nil
}

// Enter waits until the query may be asked, for so long at most. The caller calls
// leave when it has been. It reports false if the context is done before.
func (s *Limit) Enter(ctx context.Context, patience time.Duration) (leave func(answered bool), ok bool) {
	free := func(bool) {}
	if !s.active.Load() {
		return free, true
	}
	s.mu.Lock()
	if !s.active.Load() {
		s.mu.Unlock()
		return free, true
	}
	epoch := s.epoch
	if s.running < s.limit {
		s.running++
		s.mu.Unlock()
		return s.entered(epoch), true
	}
	next := make(chan struct{})
	s.queue = append(s.queue, next)
	s.mu.Unlock()

	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-next:
		return s.entered(epoch), true
	case <-timer.C:
		ok = true
	case <-ctx.Done():
	}
	if s.withdraw(next) {
		return free, ok
	}
	return s.entered(epoch), true // it was let in meanwhile
}

// withdraw takes one out of the queue, and reports false if it is not there.
func (s *Limit) withdraw(next chan struct{}) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.queue, next)
	if i < 0 {
		return false
	}
	s.queue = slices.Delete(s.queue, i, i+1)
	return true
}

// entered is for a query that runs.
func (s *Limit) entered(epoch int) (leave func(answered bool)) {
	timer := time.AfterFunc(slotTime, func() { s.leave(epoch, false) })
	return func(answered bool) {
		if timer.Stop() {
			s.leave(epoch, answered)
		}
	}
}

func (s *Limit) leave(epoch int, answered bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.active.Load() || s.epoch != epoch {
		return
	}
	s.running--
	if answered {
		s.answers++
		s.limit = firstAsks + s.answers/answersPerAsk
	}
	for s.running < s.limit && len(s.queue) > 0 {
		s.running++
		close(s.queue[0])
		s.queue = s.queue[1:]
	}
}
