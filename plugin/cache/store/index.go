package store

// index finds records by the low 32 bits of the hash of their key. It is an
// open-addressing table with linear probing. The lower 24 bits of a slot hold the offset
// of a record in words, plus one. The upper 8 bits are those of the hash. 0 is an empty
// slot.
type index struct {
	slots []uint32
	count int
}

const (
	offBits   = 24
	offMask   = 1<<offBits - 1
	minSlots  = 16
	noSlot    = -1
	maxMemory = (offMask - 1) * word // largest ring that slots can address
)

func slotFor(hash, off uint32) uint32 { return hash&^offMask | (off/word + 1) }

func slotOffset(slot uint32) uint32 { return (slot&offMask - 1) * word }

// insert adds a record. rehash returns the hash of the record at an offset.
func (x *index) insert(hash, off uint32, rehash func(off uint32) uint32) {
	if (x.count+1)*4 > len(x.slots)*3 {
		x.grow(rehash)
	}
	x.put(hash, off)
	x.count++
}

func (x *index) put(hash, off uint32) {
	mask := uint32(len(x.slots) - 1)
	i := hash & mask
	for x.slots[i] != 0 {
		i = (i + 1) & mask
	}
	x.slots[i] = slotFor(hash, off)
}

func (x *index) grow(rehash func(off uint32) uint32) {
	old := x.slots
	x.slots = make([]uint32, max(2*len(old), minSlots))
	for _, slot := range old {
		if slot != 0 {
			off := slotOffset(slot)
			x.put(rehash(off), off)
		}
	}
}

func (x *index) find(hash, off uint32) int {
	mask := uint32(len(x.slots) - 1)
	want := slotFor(hash, off)
	for i := hash & mask; x.slots[i] != 0; i = (i + 1) & mask {
		if x.slots[i] == want {
			return int(i)
		}
	}
	return noSlot
}

// move changes the offset of a record.
func (x *index) move(hash, from, to uint32) {
	if i := x.find(hash, from); i != noSlot {
		x.slots[i] = slotFor(hash, to)
	}
}

// remove removes a record. It closes the gap, at which a search would stop.
func (x *index) remove(hash, off uint32, rehash func(off uint32) uint32) {
	at := x.find(hash, off)
	if at == noSlot {
		return
	}
	mask := uint32(len(x.slots) - 1)
	hole := uint32(at)
	x.slots[hole] = 0
	for i := (hole + 1) & mask; x.slots[i] != 0; i = (i + 1) & mask {
		home := rehash(slotOffset(x.slots[i])) & mask
		// The slot may move to the hole unless its first place lies between them.
		if (i-home)&mask >= (i-hole)&mask {
			x.slots[hole], x.slots[i] = x.slots[i], 0
			hole = i
		}
	}
	x.count--
}
