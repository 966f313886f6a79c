package ledger

// What keeps a shard within its memory: sweeping out what expired and, where that
// is not enough, halving the sample, which grows again when there is room.

// tend is the upkeep that the first packet after tidy does.
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

// abandoned tells whether no packet came for so long that all entries have expired:
// perhaps too long ago for 32 bits to tell.
func (s *shard) abandoned(now int64, t *timeouts) bool {
	return now-s.tidy > int64(t.longest)
}

// grow enlarges the sample as far as there is room for it.
//
// The flows it takes in may have begun long ago, and what they did until now is
// lost: one that is a stream to the kernel looks new. It is known for what it is
// when its next packet comes within the short timeout (then it is a stream here
// too) or not within the longest (then it is new there too). So nothing that was
// taken in is counted for several times the longest timeout, by when all but a
// few tenths of a percent are known.
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

// makeRoom brings the slots in use below the limit, by enough that it is not
// called again soon.
func (s *shard) makeRoom(now int64) {
	s.sweep(now)
	for s.used > s.limit()*7/8 && s.counted < maxHalvings {
		if s.halvings == s.counted {
			s.counted++
		}
		s.keepOneIn(s.counted) // ends a growth that turned out to be too much
		s.sweep(now)
	}
}

// keepOneIn sets the sample to one flow in 2^halvings.
func (s *shard) keepOneIn(halvings uint32) {
	s.halvings = halvings
	s.unwanted.Store(mask(halvings))
}

// sweep takes out the entries that have expired or are not of the sample.
func (s *shard) sweep(now int64) {
	unwanted := mask(s.halvings)
	// Each entry that stays moves to the first free slot that probing for it
	// meets. From an empty slot on, all the entries it may have to pass have
	// been moved before it.
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

// emptySlot returns the index of one; the limit sees to it that there are some.
func (s *shard) emptySlot() int {
	for i := range s.slots {
		if s.slots[i].key == 0 {
			return i
		}
	}
	panic("ledger: a shard without an empty slot")
}
