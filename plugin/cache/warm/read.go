package warm

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"time"

	"github.com/trackless-dns/trackless/plugin/cache/cut"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/engines"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// reader fills an engine that is not in use yet, and adds to it later.
type reader struct {
	state engines.State

	since bool              // it is in use
	begun engine.Generation // of the engine: no flush since

	sameRules bool
	layout    cut.Layout
	sources   map[uint16]uint16 // their numbers here, by those there
}

var errPiece = errors.New("a piece of the answers is damaged")

// receive takes one piece, and returns the number of answers. Those that it took before an
// error stay.
func (r *reader) receive(asked time.Time, piece []byte) (answers int, err error) {
	if len(piece) == 0 {
		return 0, errPiece
	}
	content := piece[1:]
	at := r.state.Engine.Store().Time(asked)
	switch piece[0] {
	case pieceRules:
		if r.since {
			return 0, errPiece
		}
		r.sameRules = string(content) == r.state.Rules
		r.sources, r.begun = map[uint16]uint16{}, r.state.Engine.Generation()
		return 0, nil
	case pieceSince:
		if r.sources == nil {
			return 0, errPiece
		}
		r.sources, r.since = map[uint16]uint16{}, true
		return 0, nil
	case pieceSource:
		return 0, r.source(content)
	case pieceRecords:
		return r.records(at, content)
	}
	if r.since {
		return 0, errPiece
	}
	switch piece[0] {
	case pieceLayout:
		return 0, r.begin(content)
	case pieceNames:
		return 0, r.names(at, content)
	case pieceFlushed:
		r.state.Engine.Store().RemoveIf(func(wire.Key, *store.Record) bool { return true })
		return 0, errFlushed
	}
	return 0, errPiece
}

func (r *reader) source(content []byte) error {
	if len(content) < 2 || r.sources == nil {
		return errPiece
	}
	r.sources[binary.BigEndian.Uint16(content)] = r.state.Engine.SourceNumber(string(content[2:]))
	return nil
}

var errFlushed = errors.New("answers were flushed meanwhile, so that all that were taken are removed again")

func (r *reader) begin(content []byte) error {
	if len(content) != 12 {
		return errPiece
	}
	r.layout = cut.Layout{Seed: binary.BigEndian.Uint64(content), Slots: int(binary.BigEndian.Uint32(content[8:]))}
	if bits.OnesCount(uint(r.layout.Slots)) != 1 {
		return errPiece
	}
	r.state.Engine.Existing().Begin(r.layout)
	return nil
}

func (r *reader) names(at store.Time, content []byte) error {
	if len(content)%nameLen != 0 {
		return errPiece
	}
	// Rounded up, so that no name is forgotten early.
	asked := int64((at + store.Time(time.Second) - 1) / store.Time(time.Second))
	for ; len(content) > 0; content = content[nameLen:] {
		slot := int(binary.BigEndian.Uint32(content))
		if slot >= r.layout.Slots {
			return errPiece
		}
		r.state.Engine.Existing().Take(slot, r.layout.Slots, asked+1+int64(binary.BigEndian.Uint32(content[4:])))
	}
	return nil
}

// records stores the records of a piece, and returns how many.
func (r *reader) records(at store.Time, b []byte) (answers int, err error) {
	for len(b) > 0 {
		rec, rest, ok := parse(b)
		if !ok {
			return answers, errPiece
		}
		b = rest
		limit, keep := r.state.Keep(rec.key, rec.kind, rec.entry.Answer.Flags)
		if !keep {
			continue
		}
		e := &rec.entry
		e.TTL = min(e.TTL, uint32(limit/time.Second))
		e.Stored += at
		e.Seen += at
		if e.History.Retry != 0 {
			e.History.Retry += at
		}
		e.Source = r.sources[e.Source]
		if !r.sameRules {
			e.Mark = 0
		}
		if r.since && !r.wanted(&rec) {
			continue
		}
		if r.state.Engine.Restore(rec.key, rec.kind, e) {
			answers++
		}
	}
	return answers, nil
}

// wanted reports whether an engine in use takes an answer: nothing was flushed from it, and it
// has none that is as new.
func (r *reader) wanted(rec *record) bool {
	if rec.kind != store.Positive || r.state.Engine.Generation() != r.begun {
		return false
	}
	v := r.state.Engine.Store().View(rec.key)
	defer v.Close()
	own := v.Record(store.Positive)
	return own == nil || own.Stored() < rec.entry.Stored
}

// record is a record of a piece. Its times count from the time asked.
type record struct {
	key   wire.Key
	kind  store.Kind
	entry store.Entry
}

// parse reads the first record of b, and returns the bytes after it.
func parse(b []byte) (r record, rest []byte, ok bool) {
	if len(b) < headLen {
		return r, nil, false
	}
	u16 := func(off int) int { return int(binary.BigEndian.Uint16(b[off:])) }
	keyLen, bodyLen, ttlsLen, wildcardLen := u16(0), u16(2), u16(4), int(b[6])
	r.kind = store.Kind(b[7])
	e := &r.entry
	flags := b[8]
	e.Answering, e.ForAll, e.History.Proven = flags&bitAnswering != 0, flags&bitForAll != 0, flags&bitProven != 0
	e.Mark, e.History.Uses = b[9], uint32(b[10])
	e.Source = uint16(u16(11))
	e.TTL = binary.BigEndian.Uint32(b[13:])
	e.Answer.Flags = wire.Flags(u16(17))
	e.Answer.Counts = [3]uint16{uint16(u16(19)), uint16(u16(21)), uint16(u16(23))}
	e.Hits = binary.BigEndian.Uint32(b[25:])
	e.Stored = store.Time(binary.BigEndian.Uint64(b[29:]))
	e.Seen = store.Time(binary.BigEndian.Uint64(b[37:]))
	e.History.Retry = store.Time(binary.BigEndian.Uint64(b[45:]))
	b = b[headLen:]
	if len(b) < keyLen+bodyLen+ttlsLen+wildcardLen {
		return r, nil, false
	}
	take := func(n int) (part []byte) { part, b = b[:n:n], b[n:]; return part }
	r.key = take(keyLen)
	e.Answer.Body, e.Answer.TTLs = take(bodyLen), take(ttlsLen)
	e.Wildcard = string(take(wildcardLen))
	return r, b, r.kind <= store.Retained && r.key.Valid() && e.Answer.Valid()
}
