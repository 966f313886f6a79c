package ledger

import (
	"encoding/binary"
	"errors"
	"slices"
	"time"
)

// The flows of a ledger as bytes, for another process. A ledger has hashes of tuples, not
// tuples, so its hash keys go along.

// StateName and StateFormat identify the bytes: they change when the bytes mean something
// else.
const (
	StateName   = "flows"
	StateFormat = "1"
)

// The kinds of pieces, by their first byte.
const (
	pieceKeys  = 1
	pieceShard = 2
)

const (
	shardHead = 2     // number of the shard, and its counted
	slotLen   = 8 + 8 // key, then expiry and stream_ts in milliseconds from the time asked
)

var (
	errState = errors.New("a piece of the flows is damaged")
	errKeys  = errors.New("this ledger has flows of its own already, with other hash keys")
)

// WriteState calls put with the live flows, piece by piece. It holds no lock meanwhile. A
// piece is not used after put returns. Ages count from the time asked.
func (l *Ledger) WriteState(asked time.Time, put func(piece []byte) error) error {
	piece := []byte{pieceKeys}
	for _, k := range l.keys.Load() {
		piece = binary.BigEndian.AppendUint64(piece, k)
	}
	if err := put(piece); err != nil {
		return err
	}
	origin := uint32(l.age(asked))
	for i := range l.shards {
		if piece = l.shardState(i, origin, piece[:0]); len(piece) == 1+shardHead {
			continue
		}
		if err := put(piece); err != nil {
			return err
		}
	}
	return nil
}

// shardState appends the counted sample of a shard.
func (l *Ledger) shardState(i int, origin uint32, b []byte) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i == 0 {
		l.drain()
	}
	s, now := &l.shards[i], l.milliseconds()
	b = append(b, pieceShard, byte(i), byte(s.counted))
	if s.abandoned(now, l.timeouts) {
		return b
	}
	for _, e := range s.slots {
		if e.key == 0 || !e.alive(uint32(now)) || sampleBits(e.key)&mask(s.counted) != 0 {
			continue
		}
		b = binary.BigEndian.AppendUint64(b, e.key)
		b = binary.BigEndian.AppendUint32(b, e.expires-origin)
		b = binary.BigEndian.AppendUint32(b, e.streamAt-origin)
	}
	return b
}

// ReadState takes one piece, and returns the number of flows in it. A flow that both ledgers have stays one flow, with the later
// expiry. It counts as no new flow. The ledger must be empty, or must have taken the state
// of the same ledger before.
func (l *Ledger) ReadState(asked time.Time, piece []byte) (flows int, err error) {
	if len(piece) == 0 {
		return 0, errState
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drain()
	switch content := piece[1:]; piece[0] {
	case pieceKeys:
		return 0, l.takeKeys(content)
	case pieceShard:
		if len(content) < shardHead || content[0] >= shards || content[1] > maxHalvings || (len(content)-shardHead)%slotLen != 0 {
			return 0, errState
		}
		s := &l.shards[content[0]]
		s.merge(uint32(content[1]), content[shardHead:], uint32(l.age(asked)), l.milliseconds(), l.timeouts)
		return (len(content) - shardHead) / slotLen, nil
	}
	return 0, errState
}

func (l *Ledger) takeKeys(b []byte) error {
	var keys hashKeys
	if len(b) != 8*len(keys) {
		return errState
	}
	for i := range keys {
		keys[i] = binary.BigEndian.Uint64(b[8*i:])
	}
	if keys == *l.keys.Load() {
		return nil
	}
	if slices.ContainsFunc(l.shards[:], func(s shard) bool { return s.used > 0 }) {
		return errKeys
	}
	l.keys.Store(&keys)
	return nil
}

// merge takes flows of a ledger that keeps one in 2^counted.
func (s *shard) merge(counted uint32, b []byte, origin uint32, now int64, t *timeouts) {
	if now >= s.tidy {
		s.tend(now, t)
	}
	if counted > s.counted {
		s.counted = counted
		s.keepOneIn(max(counted, s.halvings))
		s.sweep(now)
	}
	for ; len(b) > 0; b = b[slotLen:] {
		e := slot{
			key:      binary.BigEndian.Uint64(b),
			expires:  binary.BigEndian.Uint32(b[8:]) + origin,
			streamAt: binary.BigEndian.Uint32(b[12:]) + origin,
		}
		if e.key&stateUsed == 0 || !e.alive(uint32(now)) || sampleBits(e.key)&mask(s.halvings) != 0 {
			continue
		}
		own := s.find(e.key)
		if own.key != 0 {
			own.join(e, uint32(now))
			continue
		}
		if s.used >= s.limit() {
			if s.makeRoom(now); s.used >= s.limit() || sampleBits(e.key)&mask(s.halvings) != 0 {
				continue
			}
			own = s.find(e.key)
		}
		*own = e
		s.used++
	}
}

// join adds to an entry what another ledger knows of the same flow.
func (e *slot) join(other slot, now uint32) {
	if !e.alive(now) {
		*e = other
		return
	}
	e.key |= other.key & (stateSeenReply | stateStream | stateClosed)
	if int32(other.expires-e.expires) > 0 {
		e.expires = other.expires
	}
	if int32(other.streamAt-e.streamAt) < 0 {
		e.streamAt = other.streamAt
	}
}

// age returns the age of the ledger in milliseconds at a time.
func (l *Ledger) age(at time.Time) int64 { return at.Sub(l.start).Milliseconds() }
