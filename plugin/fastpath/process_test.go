package fastpath

import (
	"net/netip"
	"testing"
	"time"
)

func TestRejoinMissesNoClose(t *testing.T) {
	joined, least := 0, 1
	p := &path{join: func(func(netip.Addr, time.Time)) func() {
		joined++
		return func() {
			joined--
			least = min(least, joined)
		}
	}}
	p.leave = p.join(p.door)
	p.rejoin()
	if least != 1 || joined != 1 {
		t.Errorf("the path has joined %d times, and %d at least", joined, least)
	}
}
