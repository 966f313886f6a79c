//go:build load

package store

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// TestMemoryFollowsUse: a store takes memory for what it holds, not for all it
// may hold, however often that changes.
func TestMemoryFollowsUse(t *testing.T) {
	s := open(t, Options{Bytes: 32 << 20})
	for i := range 200_000 {
		s.Put(keyOf(t, i%2000), Positive, entryOf(16+i%100, 1, 0, 3600))
	}
	if n, live := s.Bytes(), 2000*200; n > 8*live+len(s.shards)*minRing {
		t.Errorf("%d bytes in use for about %d", n, live)
	}
	consistent(t, s)
}

// TestModel does random things and compares with a map. What the store has
// must be what was put last; it may lose records, but only to eviction.
func TestModel(t *testing.T) {
	for _, seed := range []uint64{1, 2, 3, 4} {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			s := open(t, Options{Bytes: MinBytes, Positive: r.IntN(2) * 1500, Stale: 5 * time.Second})
			type id struct {
				n int
				k Kind
			}
			model := map[id]*Entry{}
			now := Time(0)
			for step := range 40000 {
				now += Time(r.IntN(int(second / 100)))
				n := r.IntN(4000)
				key := keyOf(t, n)
				k := Kind(r.IntN(2))
				switch op := r.IntN(10); {
				case op < 5:
					size := 16 + r.IntN(100)
					if r.IntN(200) == 0 {
						size = r.IntN(60000) + 1
					}
					e := entryOf(size, byte(step), now, uint32(r.IntN(60)))
					e.Answering = r.IntN(2) == 0
					if _, ok := s.Put(key, k, e); !ok {
						t.Fatalf("step %d: %d bytes not stored", step, size)
					}
					model[id{n, k}] = e
					if got, ok := read(s, key, k); !ok || got != byte(step) {
						t.Fatalf("step %d: just stored, reads %d %t", step, got, ok)
					}
				case op < 6:
					s.Remove(key, k)
					delete(model, id{n, k})
				case op == 6:
					if e := model[id{n, Positive}]; e != nil && e.Answering {
						s.Retain(key)
						delete(model, id{n, Positive})
						model[id{n, Retained}] = e
					}
				default:
					v := s.View(key)
					for k := range kinds {
						r := v.Record(k)
						if r == nil {
							continue
						}
						e := model[id{n, k}]
						if e == nil {
							t.Fatalf("step %d: record %d of kind %d was never stored or was removed", step, n, k)
						}
						if r.Stored() != e.Stored || r.TTL() != e.TTL || !bytes.Equal(r.Answer().Body, e.Answer.Body) || !bytes.Equal(r.key(), key) {
							t.Fatalf("step %d: record %d of kind %d is not what was stored", step, n, k)
						}
						r.Touch()
					}
					v.Close()
				}
				if step%2000 == 0 {
					consistent(t, s)
				}
			}
			consistent(t, s)
			if s.Len(Positive) == 0 || s.Len(Negative) == 0 {
				t.Error("nothing left to compare")
			}
		})
	}
}
