package ledger

// A shard stays within its memory by sweeping out expired entries. If that is not enough,
// it halves its sample, which grows again when there is room.

// tend is the upkeep of a shard. The first packet after tidy does it.
func (s *shard) tend(now int64, t *timeouts) {
	if s.abandoned(now, t) {
		clear(s.slots)
		s.used = 0
		s.tidy = now + tidyEvery
	} else {
		s.sweep(now)
	}
	if now >= s.completeAt {
		s.counted = s.halvings
	}
	s.grow(now, t)
}

// abandoned reports whether no packet came for so long that all entries have expired. Their
// 32-bit expiries may not tell that any more.
func (s *shard) abandoned(now int64, t *timeouts) bool {
	return now-s.tidy > int64(t.longest)
}

// grow enlarges the sample as far as there is room for it.
//
// The new flows of the sample may have begun long ago, and their state is not known: a
// flow that is a stream in the kernel looks new here. The state becomes known with the
// next packet. If it comes within the short timeout, the flow becomes a stream here too.
// If it does not come within the longest timeout, the flow is new in the kernel too. So
// the new flows are not counted for several times the longest timeout. After that, the
// state of all but a few tenths of a percent is known.
func (s *shard) grow(now int64, t *timeouts) {
	halvings := s.halvings
	for room := s.limit() * 3 / 4; halvings > 0 && s.used<<(s.halvings-halvings+1) <= room; {
		halvings--
	}
	if halvings < s.halvings {
		s.keepOneIn(halvings)
		s.completeAt = now + 5*int64(t.longest)
	}
}

// makeRoom brings the number of used slots so far below the limit that it is not called
// again soon.
func (s *shard) makeRoom(now int64) {
	s.sweep(now)
	for s.used > s.limit()*7/8 && s.counted < maxHalvings {
		if s.halvings == s.counted {
			s.counted++
		}
		s.keepOneIn(s.counted) // if the sample has grown too far, this undoes it
		s.sweep(now)
	}
}

// keepOneIn sets the sample to one flow in 2^halvings.
func (s *shard) keepOneIn(halvings uint32) {
	s.halvings = halvings
	s.unwanted.Store(mask(halvings))
}

// sweep removes the entries that have expired or are not in the sample.
func (s *shard) sweep(now int64) {
	unwanted := mask(s.halvings)
	// Each entry that stays moves to the first free slot on its way of probing. The
	// sweep starts after an empty slot, so all entries that it may have to pass have
	// been moved already.
	n := len(s.slots)
	i := s.emptySlot()
	for range n - 1 {
		if i++; i == n {
			i = 0
		}
		e := s.slots[i]
		if e.key == 0 {
			continue
		}
		s.slots[i] = slot{}
		if e.alive(uint32(now)) && sampleBits(e.key)&unwanted == 0 {
			*s.find(e.key) = e
		} else {
			s.used--
		}
	}
	s.tidy = now + tidyEvery
}

// emptySlot returns the index of an empty slot. The limit guarantees that there is one.
func (s *shard) emptySlot() int {
	for i := range s.slots {
		if s.slots[i].key == 0 {
			return i
		}
	}
	panic("ledger: a shard without an empty slot")
}
