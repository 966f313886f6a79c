package cut

import (
	"math/bits"
	"math/rand/v2"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"

	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// Existing remembers for a while which names exist, in memory of a fixed size. It may say of
// a name that it exists although nobody said so, if many do. It never forgets one early. So it
// can keep a denial from being used, and never the other way round. Its methods may be called
// from several goroutines at once.
type Existing struct {
	seed  uint64
	until []atomic.Uint32 // seconds, by hash; a name has two of them
}

// NewExisting returns an empty memory of at most the size in bytes.
func NewExisting(size int) *Existing {
	return &Existing{seed: rand.Uint64(), until: make([]atomic.Uint32, 1<<(bits.Len(uint(max(size/4, 2)))-1))}
}

// Bytes returns the size in bytes.
func (e *Existing) Bytes() int { return 4 * len(e.until) }

// Add remembers that the name exists, and so do all names above it, up to a time in seconds.
func (e *Existing) Add(name []byte, until uint32) {
	for ; len(name) > 1; name = wire.Parent(name) {
		for _, slot := range e.slots(name) {
			for {
				old := slot.Load()
				if old >= until || slot.CompareAndSwap(old, until) {
					break
				}
			}
		}
	}
}

// Has reports whether the name is known to exist at the time now.
func (e *Existing) Has(name []byte, now uint32) bool {
	for _, slot := range e.slots(name) {
		if slot.Load() <= now {
			return false
		}
	}
	return true
}

// Inherit takes over what another memory knows, before this one is used. Times of this one are by shift
// seconds later.
func (e *Existing) Inherit(from *Existing, shift int64) {
	e.Begin(from.Layout())
	from.Each(func(slot int, until uint32) { e.Take(slot, len(from.until), int64(until)+shift) })
}

// Layout is which slots of a memory a name has. The slots of another memory can be taken
// over by a memory that begins with its layout.
type Layout struct {
	Seed  uint64
	Slots int // a power of two
}

// Layout returns the layout of this memory.
func (e *Existing) Layout() Layout { return Layout{e.seed, len(e.until)} }

// Begin prepares an empty memory, before it is used, for the slots of another one. It keeps
// its size.
func (e *Existing) Begin(from Layout) { e.seed = from.Seed }

// Each calls fn for each slot in use, with its time in seconds.
func (e *Existing) Each(fn func(slot int, until uint32)) {
	for i := range e.until {
		if until := e.until[i].Load(); until != 0 {
			fn(i, until)
		}
	}
}

// Take takes over a slot of a memory that has so many. Where the sizes differ, more names
// may seem to exist, and none fewer.
func (e *Existing) Take(slot, slots int, until int64) {
	if until <= 0 {
		return
	}
	for ; slot < max(slots, len(e.until)); slot += slots {
		own := &e.until[slot&(len(e.until)-1)]
		own.Store(max(own.Load(), uint32(until)))
	}
}

// slots returns the places of a name.
func (e *Existing) slots(name []byte) [2]*atomic.Uint32 {
	hi, lo := bits.Mul64(xxhash.Sum64(name)^e.seed, 0x9e3779b97f4a7c15)
	h := hi ^ lo
	mask := uint64(len(e.until) - 1)
	return [2]*atomic.Uint32{&e.until[h&mask], &e.until[h>>32&mask]}
}
