package store

// ghosts remembers fingerprints of the keys that were evicted last from the small queue. A
// key that comes back soon goes to the main queue. A slot holds 16 bits of the hash, and
// 16 bits of the time, which is counted in evictions.
type ghosts struct {
	slots []uint32
	clock uint32
}

const ghostWays = 4

// resize forgets everything and makes room for n keys, n a power of two.
func (g *ghosts) resize(n int) { g.slots = make([]uint32, max(n, ghostWays)) }

func (g *ghosts) bucket(hash uint32) []uint32 {
	i := int(hash) & (len(g.slots)/ghostWays - 1) * ghostWays
	return g.slots[i : i+ghostWays]
}

// add remembers a key. It replaces the oldest key of the bucket.
func (g *ghosts) add(hash uint32) {
	if len(g.slots) == 0 {
		return
	}
	g.clock++
	bucket := g.bucket(hash)
	oldest, age := 0, uint32(0)
	for i, slot := range bucket {
		if slot == 0 {
			oldest = i
			break
		}
		if a := g.age(slot); a >= age {
			oldest, age = i, a
		}
	}
	bucket[oldest] = hash&^0xffff | g.clock&0xffff
}

// take reports whether the key is among the last n evicted, and forgets it.
func (g *ghosts) take(hash uint32, n int) bool {
	if len(g.slots) == 0 {
		return false
	}
	bucket := g.bucket(hash)
	for i, slot := range bucket {
		if slot != 0 && (slot^hash)&^0xffff == 0 && int(g.age(slot)) < n {
			bucket[i] = 0
			return true
		}
	}
	return false
}

func (g *ghosts) age(slot uint32) uint32 { return (g.clock - slot) & 0xffff }
