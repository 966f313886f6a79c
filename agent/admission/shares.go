package admission

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
)

// slots is the number of counters for clients. Two clients may share one by chance: beside one
// that floods, one of 100 others does so in one process of 80.
const slots = 8192

var slotSeed = maphash.MakeSeed()

func slotOf(client netip.Addr) uint32 {
	return uint32(maphash.Comparable(slotSeed, client) % slots)
}

// shares counts queries, in all and by the slot of their client.
type shares struct {
	all      atomic.Int32
	byClient [slots]atomic.Int32
}

func (s *shares) of(slot uint32) int32 { return s.byClient[slot].Load() }

func (s *shares) add(slot uint32, n int32) (all, own int32) {
	return s.all.Add(n), s.byClient[slot].Add(n)
}

func (s *shares) clear() {
	s.all.Store(0)
	for i := range s.byClient {
		s.byClient[i].Store(0)
	}
}

// stuck has for each client the busy queries of before the present window that have not
// ended in it. Some of those that ended may have come later, so that it is never too many.
// It is kept while watch runs.
type stuck struct {
	here, gone [slots]atomic.Int32
}

func (s *stuck) begin(busy, waiting *shares) {
	for i := range s.here {
		s.here[i].Store(busy.byClient[i].Load() - waiting.byClient[i].Load())
		s.gone[i].Store(0)
	}
}

func (s *stuck) of(slot uint32) int32 { return max(0, s.here[slot].Load()-s.gone[slot].Load()) }
