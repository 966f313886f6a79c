// Package slowstart bounds the queries under way to an upstream that has just recovered.
// Thousands may wait for it, and each would open a connection: so many handshakes at once
// all time out. A few queries go first, the next ones use their connections, and the limit
// grows with the answers.
package slowstart

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Limit is the limit of one upstream. The zero value bounds nothing.
type Limit struct {
	active atomic.Bool

	mu      sync.Mutex
	epoch   int // counts the starts
	limit   int
	running int
	answers int
	queue   []chan struct{} // closed when the query may go on
}

const (
	// firstAsks is the limit at first. It grows by one with every answersPerAsk answers.
	// 2,500 queries need 350 connections: a nearby upstream answers them at once, and
	// one that takes 50 ms in a second.
	firstAsks     = 32
	answersPerAsk = 8

	// lasts is how long the limit lasts.
	lasts = 2 * time.Second

	// A query without an answer keeps its place for slotTime.
	slotTime = 500 * time.Millisecond
)

// Begin starts the limit, when the upstream has recovered.
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

// stop ends the limit: all queries may go on.
func (s *Limit) stop() {
	s.active.Store(false)
	for _, next := range s.queue {
		close(next)
	}
	s.queue = nil
}

// Enter waits until the query may be asked, but no longer than patience. The caller must
// call leave after it was asked. Enter returns false if the context is done before.
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
	return s.entered(epoch), true // its turn has come meanwhile
}

// withdraw removes a query from the queue. It returns false if the query is not there.
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

// entered starts the time of a query that may be asked.
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
