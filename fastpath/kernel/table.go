package kernel

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/trackless-dns/trackless/fastpath"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// segments is into how many parts the units are divided. One is being filled and
// one is empty, so that more segments waste less, and each wait for the program's
// runs frees less.
const segments = 8

// A Table is the memory that the program reads: buckets of slots, and units in
// which records lie. A slot is replaced by one atomic store, and a record never
// changes, so that the program sees a record whole or not at all.
//
// New records fill a segment of the units. When it is full, the oldest segment is
// emptied: records that were used since are moved, the others are withdrawn.
// Memory of withdrawn records is written again only after every run of the
// program that may have seen them has ended (wait).
//
// A Table is a [fastpath.Sink].
type Table struct {
	seed    uint64
	mask    uint32 // buckets - 1
	buckets []byte
	units   []byte
	wait    func() error

	size    uint32           // units of a segment
	ends    [segments]uint32 // the first unit of each segment that holds no record
	current int
	used    int      // records
	seen    []uint32 // hits of the record at each unit that Uses has told
}

// newTable returns an empty table in zeroed memory. Wait returns when every run of
// the program that has begun before has ended.
func newTable(seed uint64, buckets, units []byte, wait func() error) *Table {
	t := &Table{
		seed: seed, mask: uint32(len(buckets)/bucketSize) - 1, buckets: buckets, units: units, wait: wait,
		size: uint32(len(units) / unitSize / segments),
		seen: make([]uint32, len(units)/unitSize),
	}
	for i := range t.ends {
		t.ends[i] = t.start(i)
	}
	return t
}

// start is the first unit of a segment. An empty slot names unit 0: no record lies
// there.
func (t *Table) start(segment int) uint32 { return max(uint32(segment)*t.size, 1) }

// Len implements [fastpath.Sink].
func (t *Table) Len() int { return t.used }

// Publish implements [fastpath.Sink].
func (t *Table) Publish(r *fastpath.Record) error {
	if !fits(r) {
		return fastpath.ErrTooLarge
	}
	key := keyByte(r.Listener, r.Key)
	p := where(t.seed, r.Key.Name(), r.Key.Type(), key, t.mask)
	slot := t.slotFor(p)
	if slot == nil {
		return fastpath.ErrFull
	}
	if *slot != 0 && t.holds(uint32(*slot), r.Key.Name(), r.Key.Type(), key) && t.storedAt(uint32(*slot)) == monotonic(r.Stored) {
		return nil
	}
	n := uint32(unitsOf(r))
	unit := t.ends[t.current]
	if unit+n > uint32(t.current+1)*t.size {
		return fastpath.ErrNoRoom
	}
	t.ends[t.current] += n
	put(t.at(unit, n), r)
	t.seen[unit] = 0
	t.set(slot, p.tag, unit)
	return nil
}

// Withdraw implements [fastpath.Sink].
func (t *Table) Withdraw(listener uint8, key wire.Key) bool {
	if len(key.Name()) > MaxName {
		return false
	}
	p := where(t.seed, key.Name(), key.Type(), keyByte(listener, key), t.mask)
	slot := t.find(p)
	if slot == nil || !t.holds(uint32(*slot), key.Name(), key.Type(), keyByte(listener, key)) {
		return false
	}
	t.clear(slot)
	return true
}

// Clear implements [fastpath.Sink].
func (t *Table) Clear() {
	for i := range uint32(len(t.buckets) / 8) {
		if slot := t.slot(i); *slot != 0 {
			t.clear(slot)
		}
	}
}

func (t *Table) slot(i uint32) *uint64 { return (*uint64)(unsafe.Pointer(&t.buckets[8*i])) }

func (t *Table) set(slot *uint64, tag, unit uint32) {
	if atomic.LoadUint64(slot) == 0 {
		t.used++
	}
	atomic.StoreUint64(slot, uint64(tag)<<32|uint64(unit))
}

func (t *Table) clear(slot *uint64) {
	atomic.StoreUint64(slot, 0)
	t.used--
}

// find returns the slot with the tag of the place, or nil.
func (t *Table) find(p place) *uint64 {
	for _, bucket := range [2]uint32{p.first, p.second} {
		for i := range uint32(ways) {
			if slot := t.slot(bucket*ways + i); uint32(*slot>>32) == p.tag {
				return slot
			}
		}
	}
	return nil
}

// slotFor returns the slot for a record of the place: that with its tag, for the
// program looks at no other, else an empty one of the emptier bucket.
func (t *Table) slotFor(p place) *uint64 {
	if slot := t.find(p); slot != nil {
		return slot
	}
	var empty *uint64
	most := 0
	for _, bucket := range [2]uint32{p.first, p.second} {
		var in *uint64
		n := 0
		for i := range uint32(ways) {
			if slot := t.slot(bucket*ways + i); *slot == 0 {
				in = slot
				n++
			}
		}
		if n > most {
			most, empty = n, in
		}
	}
	return empty
}

func (t *Table) at(unit, n uint32) []byte { return t.units[unit*unitSize:][:n*unitSize] }

// holds reports whether the record at the unit answers the question.
func (t *Table) holds(unit uint32, name []byte, qtype uint16, key byte) bool {
	b := t.at(unit, 2)
	if int(b[atNameLen]) != len(name) || b[atKey] != key || binary.BigEndian.Uint16(b[atType:]) != qtype {
		return false
	}
	var buf [MaxName + unitSize]byte
	return string(t.nameAt(buf[:0], unit)) == string(name)
}

// storedAt is the time at which the answer at the unit was stored.
func (t *Table) storedAt(unit uint32) uint64 {
	return binary.LittleEndian.Uint64(t.at(unit, 1)[atStored:])
}

func (t *Table) nameAt(dst []byte, unit uint32) []byte {
	b := t.at(unit, 2)
	n := int(b[atNameLen])
	dst = append(dst, b[atName:unitSize]...)
	dst = append(dst, b[unitSize+2*MaxRecords:2*unitSize]...)
	if n > len(dst) {
		dst = append(dst, t.at(unit+2, 1)...)
	}
	return dst[:n]
}

// sizeAt returns how many units the record at the unit takes.
func (t *Table) sizeAt(unit uint32) uint32 {
	b := t.at(unit, 1)
	n := 2 + (uint32(binary.LittleEndian.Uint16(b[atBodyLen:]))+unitSize-1)/unitSize
	if b[atNameLen] > headName+moreName {
		n++
	}
	return n
}

// MakeRoom implements [fastpath.Sink]. It goes on to the segment that is empty, and
// empties the oldest.
func (t *Table) MakeRoom(locked func(func())) error {
	if err := t.wait(); err != nil {
		return fmt.Errorf("wait for runs of the kernel program: %w", err)
	}
	locked(func() {
		t.current = (t.current + 1) % segments
		t.empty((t.current + 1) % segments)
	})
	return nil
}

// empty withdraws the records of a segment. Those that were used since they came
// are moved to the current segment, as far as half of it has room.
func (t *Table) empty(segment int) {
	half := t.start(t.current) + t.size/2
	var n uint32
	for unit := t.start(segment); unit < t.ends[segment]; unit += n {
		n = t.sizeAt(unit)
		slot := t.slotOf(unit)
		if slot == nil {
			continue // replaced or withdrawn
		}
		to := t.ends[t.current]
		if *t.hits(unit) == 0 || to+n > half {
			t.clear(slot)
			continue
		}
		copy(t.at(to, n), t.at(unit, n))
		*t.hits(to), t.seen[to] = 0, 0
		t.ends[t.current] += n
		atomic.StoreUint64(slot, *slot&^0xffffffff|uint64(to))
	}
	t.ends[segment] = t.start(segment)
}

// usesAtOnce is how many buckets Uses reads in one part.
const usesAtOnce = 256

// Uses implements [fastpath.Sink]. The program counts hits of a record without a lock:
// two processors may count one hit for two.
func (t *Table) Uses(locked func(func()), fn func(class uint16, listener uint8, key wire.Key, n uint32)) {
	var key [wire.MaxKey + unitSize]byte
	slots := uint32(len(t.buckets) / 8)
	for from := uint32(0); from < slots; from += usesAtOnce * ways {
		var used []use
		locked(func() {
			for i := from; i < min(from+usesAtOnce*ways, slots); i++ {
				slot := *t.slot(i)
				if slot == 0 {
					continue
				}
				unit := uint32(slot)
				hits := atomic.LoadUint32(t.hits(unit))
				if n := hits - t.seen[unit]; n > 0 {
					t.seen[unit] = hits
					used = append(used, t.useOf(unit, n))
				}
			}
		})
		for _, u := range used {
			fn(u.class, u.listener, u.appendKey(key[:0]), u.n)
		}
	}
}

// use is how often a record was used.
type use struct {
	class    uint16
	listener uint8
	bits     wire.Bits
	qtype    uint16
	n        uint32
	name     string
}

func (t *Table) useOf(unit, n uint32) use {
	var buf [MaxName + unitSize]byte
	b := t.at(unit, 1)
	return use{
		class: binary.LittleEndian.Uint16(b[atClass:]), listener: b[atKey] >> 1, bits: wire.Bits(b[atKey] & 1),
		qtype: binary.BigEndian.Uint16(b[atType:]), n: n, name: string(t.nameAt(buf[:0], unit)),
	}
}

func (u *use) appendKey(dst []byte) wire.Key {
	dst = append(dst, u.name...)
	dst = binary.BigEndian.AppendUint16(dst, u.qtype)
	return append(dst, 0, 1, byte(u.bits))
}

func (t *Table) hits(unit uint32) *uint32 {
	return (*uint32)(unsafe.Pointer(&t.units[unit*unitSize+atHits]))
}

// slotOf returns the slot that names the unit, or nil.
func (t *Table) slotOf(unit uint32) *uint64 {
	var buf [MaxName]byte
	b := t.at(unit, 1)
	p := where(t.seed, t.nameAt(buf[:0], unit), binary.BigEndian.Uint16(b[atType:]), b[atKey], t.mask)
	if slot := t.find(p); slot != nil && uint32(*slot) == unit {
		return slot
	}
	return nil
}
