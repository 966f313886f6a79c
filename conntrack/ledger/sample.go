package ledger

// What keeps a shard within its memory: sweeping out what expired and, where that
// is not enough, halving the sample, which grows again when there is room.

// tend is the upkeep that is due every tidyEvery.
func (s *shard) tend(now int64, t *timeouts) {
	if now-s.tidy > int64(t.longest) {
		// No packet since tidy, so all have expired, too long ago perhaps
		// for 32 bits to tell.
		clear(s.slots)
		s.used = 0
	}
	s.sweep(now)
	if now >= s.completeAt {
		s.counted = s.halvings
	}
	s.grow(now, t)
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

// sweep empties the slots of entries that have expired or are not of the sample.
func (s *shard) sweep(now int64) {
	unwanted := mask(s.halvings)
	for i := 0; i < len(s.slots); {
		e := &s.slots[i]
		if e.key == 0 || e.alive(uint32(now)) && sampleBits(e.key)&unwanted == 0 {
			i++
			continue
		}
		s.remove(i) // and look at i again: another entry may have moved there
	}
	s.tidy = now + tidyEvery
}

// remove empties a slot and closes the gap, so that probing for the entries after
// it still finds them (Knuth, The Art of Computer Programming 3, 6.4, algorithm R).
func (s *shard) remove(gap int) {
	n := len(s.slots)
	distance := func(from, to int) int {
		if to < from {
			return to - from + n
		}
		return to - from
	}
	for i := gap; ; {
		if i++; i == n {
			i = 0
		}
		if s.slots[i].key == 0 {
			break
		}
		if place := s.place(s.slots[i].key); distance(place, i) >= distance(gap, i) {
			s.slots[gap] = s.slots[i]
			gap = i
		}
	}
	s.slots[gap] = slot{}
	s.used--
}
