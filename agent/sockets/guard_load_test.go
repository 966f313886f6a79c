//go:build load

package sockets

import (
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testwait"
)

// A client that had enough gets more slowly, though some have ended: a storm would come at once.
func TestAStormThatReturns(t *testing.T) {
	s, endpoints := serve(t)
	g := &Guard{PerClient: 16, All: 1000}
	if err := g.Follow(endpoints); err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	testwait.True(t, time.Minute, "the client may open no more", func() bool { return s.dial(t, greedy) == nil && s.has(greedy) <= 16 })
	const left = 5
	s.closeAll(greedy, left)
	testwait.True(t, time.Minute, "connections are closed", func() bool { return s.has(greedy) <= left })
	opened := 0
	for range 10 {
		if s.dial(t, greedy) != nil {
			opened++
		}
	}
	if opened > 5 {
		t.Errorf("%d connections were opened at once", opened)
	}
	s.closeAll(greedy, 0)
	testwait.True(t, time.Minute, "a client without connections may open some", func() bool {
		first, second := s.dial(t, greedy), s.dial(t, greedy)
		return first != nil && second != nil
	})
}
