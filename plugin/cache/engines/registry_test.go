package engines

import (
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// TestAcquire has a row for each difference between the wants of two caches: whether the
// second cache gets the engine of the first, or its answers.
func TestAcquire(t *testing.T) {
	first := Want{Fingerprint: "a", Rules: "r", Options: engine.Options{Store: store.Options{Bytes: store.MinBytes}}}
	all := func(wire.Key, store.Kind, wire.Flags) (time.Duration, bool) { return time.Minute, true }
	for _, tc := range []struct {
		name    string
		edit    func(*Want)
		same    bool
		answers int
	}{
		{"none", func(*Want) {}, true, 1},
		{"fingerprint", func(w *Want) { w.Fingerprint = "b" }, false, 0},
		{"no fingerprint", func(w *Want) { w.Fingerprint = "" }, false, 0},
		{"options", func(w *Want) { w.Options.KeepTTL = true }, false, 1},
		{"rules", func(w *Want) { w.Rules = "s" }, false, 1},
		{"rules by which the answer is not stored", func(w *Want) {
			w.Rules = "s"
			w.Keep = func(wire.Key, store.Kind, wire.Flags) (time.Duration, bool) { return 0, false }
		}, false, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var r Registry[int]
			before, err := r.Acquire(1, first)
			if err != nil {
				t.Fatal(err)
			}
			key, err := wire.AppendKey(nil, "www.example.org.", dns.TypeA, dns.ClassINET, 0)
			if err != nil {
				t.Fatal(err)
			}
			s := before.Store()
			s.Put(key, store.Positive, &store.Entry{Stored: s.Time(time.Now()), TTL: 300})
			before.Exists(key.Name(), time.Now(), time.Minute)
			second := first
			second.Keep = all
			tc.edit(&second)
			after, err := r.Acquire(2, second)
			if err != nil {
				t.Fatal(err)
			}
			if n := after.Store().Len(store.Positive); (after == before) != tc.same || n != tc.answers {
				t.Errorf("same engine %t with %d answers, want %t with %d", after == before, n, tc.same, tc.answers)
			}
			if exists, _ := after.Knows(key, time.Now()); exists != (tc.name != "fingerprint" && tc.name != "no fingerprint") {
				t.Errorf("the name exists: %t", exists)
			}
			r.Release(func(owner int) bool { return owner == 1 })
			r.Each(func(e *engine.Engine, owners []int) {
				if e != after || len(owners) != 1 || owners[0] != 2 {
					t.Errorf("owners %v of an engine after the first has left", owners)
				}
			})
			r.Release(func(int) bool { return true })
			r.Each(func(*engine.Engine, []int) { t.Error("an engine without owners is left") })
		})
	}
}

// TestNoFingerprint: caches without a fingerprint share nothing.
func TestNoFingerprint(t *testing.T) {
	var r Registry[int]
	want := Want{Options: engine.Options{Store: store.Options{Bytes: store.MinBytes}}}
	a, errA := r.Acquire(1, want)
	b, errB := r.Acquire(2, want)
	if errA != nil || errB != nil || a == b {
		t.Errorf("same engine %t, errors %v and %v", a == b, errA, errB)
	}
	r.Release(func(int) bool { return true })
}
