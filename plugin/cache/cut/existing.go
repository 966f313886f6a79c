package cut

import (
	"hash/maphash"
	"math/bits"
	"sync/atomic"

	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// Existing remembers for a while which names exist, in memory of a fixed size. It may say of
// a name that it exists although nobody said so, if many do. It never forgets one early. So it
// can keep a denial from being used, and never the other way round. Its methods may be called
// from several goroutines at once.
type Existing struct {
	seed  maphash.Seed
	until []atomic.Uint32 // seconds, by hash; a name has two of them
}

// NewExisting returns an empty memory of at most the size in bytes.
func NewExisting(size int) *Existing {
	return &Existing{seed: maphash.MakeSeed(), until: make([]atomic.Uint32, 1<<(bits.Len(uint(max(size/4, 2)))-1))}
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
// seconds later. Where the sizes differ, more names may seem to exist, and none fewer.
func (e *Existing) Inherit(from *Existing, shift int64) {
	e.seed = from.seed
	for i := range max(len(e.until), len(from.until)) {
		until := int64(from.until[i&(len(from.until)-1)].Load())
		if until == 0 || until+shift <= 0 {
			continue
		}
		slot := &e.until[i&(len(e.until)-1)]
		slot.Store(max(slot.Load(), uint32(until+shift)))
	}
}

// slots returns the places of a name.
func (e *Existing) slots(name []byte) [2]*atomic.Uint32 {
	h := maphash.Bytes(e.seed, name)
	mask := uint64(len(e.until) - 1)
	return [2]*atomic.Uint32{&e.until[h&mask], &e.until[h>>32&mask]}
}
