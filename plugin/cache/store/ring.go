package store

// ring is memory with records one after the other, from tail to head and around the end.
// It moves records, and tells its owner by calling move.
//
// All offsets and sizes are in bytes and multiples of word.
type ring struct {
	mem  []byte
	end  uint32 // the part in use; grows up to len(mem)
	head uint32 // where the next record goes
	tail uint32 // the oldest record or hole
	used uint32 // from tail to head, holes included
	live uint32 // records only
	high uint32 // the highest head ever: memory above it was never written
}

// minRing is the part of a ring that is used at first.
const minRing = 16 << 10

// limit returns the bytes of the ring that records may take.
func (r *ring) limit() uint32 { return uint32(len(r.mem) / 8 * 7) }

// room reports whether a record of n bytes fits without eviction.
func (r *ring) room(n uint32) bool { return r.live+n <= r.limit() }

// alloc reserves n bytes at the head and returns their offset. room(n) must be true. It
// moves records that are in the way, and calls move(from, to) after each. It returns
// none if it finds no contiguous place within two rounds.
func (r *ring) alloc(n uint32, move func(from, to uint32)) uint32 {
	if r.used == 0 {
		r.head, r.tail = 0, 0
		r.end = max(r.end, min(minRing, uint32(len(r.mem))))
	}
	for walked := uint64(0); walked <= 2*uint64(r.end)+uint64(n); {
		if r.used == 0 || r.tail < r.head { // free at both ends
			if r.end-r.head >= n {
				return r.take(n)
			}
			if r.end < uint32(len(r.mem)) && 2*(uint64(r.live)+uint64(n)) > uint64(r.end) {
				r.end = min(2*r.end, uint32(len(r.mem)))
				continue
			}
			walked += uint64(r.end - r.head)
			r.wrap()
			continue
		}
		if r.tail-r.head >= n {
			return r.take(n)
		}
		walked += uint64(r.advance(move))
	}
	return none
}

func (r *ring) take(n uint32) uint32 {
	off := r.head
	r.head += n
	r.used += n
	r.live += n
	r.high = max(r.high, r.head)
	return off
}

// wrap fills the space before the end with a hole and sets the head to the start.
func (r *ring) wrap() {
	if rest := r.end - r.head; rest > 0 {
		hole := recordAt(r.mem, r.head)
		hole.words, hole.state = uint16(rest/word), stateHole
		r.used += rest
	}
	r.head = 0
}

// advance moves the tail behind the first record or hole. A hole becomes free space. A
// record is moved to the head.
func (r *ring) advance(move func(from, to uint32)) uint32 {
	from, to := r.tail, r.head
	rec := recordAt(r.mem, from)
	n := rec.size()
	if rec.state == stateHole {
		r.used -= n
	} else {
		if from != to {
			copy(r.mem[to:to+n], r.mem[from:from+n])
			move(from, to)
		}
		r.head += n
		r.high = max(r.high, r.head)
	}
	if r.tail += n; r.tail == r.end {
		r.tail = 0
	}
	return n
}

// free turns the record at off into a hole.
func (r *ring) free(off uint32) {
	rec := recordAt(r.mem, off)
	rec.state = stateHole
	r.live -= rec.size()
}

// each calls fn with the offset of every record, oldest first. fn may free
// the record.
func (r *ring) each(fn func(off uint32)) {
	off := r.tail
	for left := r.used; left > 0; {
		rec := recordAt(r.mem, off)
		n := rec.size()
		if rec.state != stateHole {
			fn(off)
		}
		left -= n
		if off += n; off == r.end {
			off = 0
		}
	}
}
