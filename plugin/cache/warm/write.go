package warm

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/engines"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// writer writes the answers of an engine, which goes on serving.
type writer struct {
	state engines.State
	asked store.Time
	now   func() time.Time
	put   func([]byte) error
	begun engine.Generation // no flush since

	buf     []byte // records of one shard
	piece   []byte
	ends    []int           // of the records in buf
	sources map[uint16]bool // that were written
	fresh   []uint16        // that are to be written before buf
}

func (w *writer) write() error {
	w.begun = w.state.Engine.Settled()
	err := w.all()
	if errors.Is(err, errFlushed) {
		return w.put([]byte{pieceFlushed})
	}
	return err
}

// writeSince writes the answers that came since the successor asked: without them it would ask
// again for all that was asked while both ran. Denials are not among them, since the memory of
// names that exist is given only once. The engine of the successor is in use by now.
func (w *writer) writeSince() error {
	w.begun = w.state.Engine.Settled()
	if err := w.give([]byte{pieceSince}); err != nil {
		return err
	}
	return w.shards(func(r *store.Record, _ store.History) bool {
		return r.Kind() == store.Positive && r.Stored() >= w.asked
	})
}

func (w *writer) all() error {
	if err := w.give(append([]byte{pieceRules}, w.state.Rules...)); err != nil {
		return err
	}
	if err := w.names(); err != nil {
		return err
	}
	// Answers that are used come first: the time may not be enough for all.
	used := func(_ *store.Record, h store.History) bool { return h.Uses > 0 || h.Proven }
	if err := w.shards(used); err != nil {
		return err
	}
	if err := w.shards(func(r *store.Record, h store.History) bool { return !used(r, h) }); err != nil {
		return err
	}
	// Names of which it turned out meanwhile that they exist: a denial that was given must
	// not deny them.
	if err := w.names(); err != nil {
		return err
	}
	return w.flushed()
}

// give gives a piece, unless answers were flushed: the successor must learn that soon, as
// its time may be over before the last piece.
func (w *writer) give(piece []byte) error {
	if err := w.flushed(); err != nil {
		return err
	}
	return w.put(piece)
}

func (w *writer) flushed() error {
	if w.state.Engine.Generation() != w.begun {
		return errFlushed
	}
	return nil
}

// names writes which names exist. Times are seconds from the time asked on, rounded up.
func (w *writer) names() error {
	existing := w.state.Engine.Existing()
	layout := existing.Layout()
	piece := binary.BigEndian.AppendUint64([]byte{pieceLayout}, layout.Seed)
	if err := w.give(binary.BigEndian.AppendUint32(piece, uint32(layout.Slots))); err != nil {
		return err
	}
	asked := int64(w.asked / store.Time(time.Second))
	piece = append(make([]byte, 0, pieceSize), pieceNames)
	var err error
	flush := func() {
		if err == nil && len(piece) > 1 {
			err = w.give(piece)
		}
		piece = piece[:1]
	}
	existing.Each(func(slot int, until uint32) {
		left := int64(until) - asked
		if left <= 0 {
			return
		}
		piece = binary.BigEndian.AppendUint32(piece, uint32(slot))
		piece = binary.BigEndian.AppendUint32(piece, uint32(left))
		if len(piece) > pieceSize-nameLen {
			flush()
		}
	})
	flush()
	return err
}

// nameLen is the size of a slot in a piece.
const nameLen = 8

// shards writes the answers for which chosen returns true.
func (w *writer) shards(chosen func(*store.Record, store.History) bool) error {
	if w.sources == nil {
		w.sources = map[uint16]bool{0: true}
	}
	for i := range w.state.Engine.Store().Shards() {
		if err := w.shard(i, chosen); err != nil {
			return err
		}
	}
	return nil
}

// shard writes those of a shard. It copies them under the lock of the shard, and writes them
// without it.
func (w *writer) shard(i int, chosen func(*store.Record, store.History) bool) error {
	st := w.state.Engine.Store()
	now := st.Time(w.now())
	w.buf, w.ends, w.fresh = w.buf[:0], w.ends[:0], w.fresh[:0]
	st.RangeShard(i, func(key wire.Key, r *store.Record) {
		h := r.History(now)
		if !chosen(r, h) || !w.state.Engine.Servable(r, now) {
			return
		}
		if source := r.Source(); !w.sources[source] {
			w.sources[source] = true
			w.fresh = append(w.fresh, source)
		}
		w.buf = w.record(w.buf, key, r, h, now)
		w.ends = append(w.ends, len(w.buf))
	})
	for _, source := range w.fresh {
		piece := binary.BigEndian.AppendUint16([]byte{pieceSource}, source)
		if err := w.give(append(piece, w.state.Engine.SourceName(source)...)); err != nil {
			return err
		}
	}
	w.piece = append(w.piece[:0], pieceRecords)
	begin := 0
	for n, end := range w.ends {
		w.piece = append(w.piece, w.buf[begin:end]...)
		begin = end
		if len(w.piece) < pieceSize && n < len(w.ends)-1 {
			continue
		}
		if err := w.give(w.piece); err != nil {
			return err
		}
		w.piece = w.piece[:1]
	}
	return nil
}

// The bits of a record.
const (
	bitAnswering = 1 << iota
	bitForAll
	bitProven
)

// headLen is the size of a record without key, body, TTL offsets and wildcard name.
const headLen = 2*3 + 1 + 1 + 1 + 1 + 1 + 2 + 4 + 2 + 2*3 + 4 + 3*8

// record appends a record. Its times are nanoseconds from the time asked on.
func (w *writer) record(b []byte, key wire.Key, r *store.Record, h store.History, now store.Time) []byte {
	a, wildcard := r.Answer(), r.Wildcard()
	var bits byte
	if r.Answering() {
		bits |= bitAnswering
	}
	if r.ForAll() {
		bits |= bitForAll
	}
	if h.Proven {
		bits |= bitProven
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(key)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.Body)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.TTLs)))
	b = append(b, byte(len(wildcard)), byte(r.Kind()), bits, r.Mark(), byte(h.Uses))
	b = binary.BigEndian.AppendUint16(b, r.Source())
	b = binary.BigEndian.AppendUint32(b, r.TTL())
	b = binary.BigEndian.AppendUint16(b, uint16(a.Flags))
	for _, n := range a.Counts {
		b = binary.BigEndian.AppendUint16(b, n)
	}
	b = binary.BigEndian.AppendUint32(b, r.Hits())
	b = binary.BigEndian.AppendUint64(b, uint64(r.Stored()-w.asked))
	b = binary.BigEndian.AppendUint64(b, uint64(r.LastUse(now)-w.asked))
	retry := int64(0)
	if h.Retry > now {
		retry = int64(h.Retry - w.asked)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(retry))
	b = append(append(append(b, key...), a.Body...), a.TTLs...)
	return append(b, wildcard...)
}
