package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

const second = Time(time.Second)

func open(t testing.TB, o Options) *Store {
	t.Helper()
	if o.Bytes == 0 {
		o.Bytes = 1 << 20
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func keyOf(t testing.TB, n int) wire.Key {
	t.Helper()
	key, err := wire.AppendKey(nil, fmt.Sprintf("n%d.example.org.", n), 1, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// entryOf makes an entry with a body of n bytes that fill gives away.
func entryOf(n int, fill byte, stored Time, ttl uint32) *Entry {
	return &Entry{Stored: stored, TTL: ttl, Answering: true, Answer: wire.Answer{
		Flags: wire.Flags(fill), Counts: [3]uint16{1, 2, uint16(fill)}, Body: bytes.Repeat([]byte{fill}, n), TTLs: []byte{fill, 0},
	}}
}

// read returns the first byte of the body, or false.
func read(s *Store, key wire.Key, k Kind) (byte, bool) {
	v := s.View(key)
	defer v.Close()
	r := v.Record(k)
	if r == nil {
		return 0, false
	}
	return r.Answer().Body[0], true
}

func TestPutAndView(t *testing.T) {
	s := open(t, Options{})
	key := keyOf(t, 1)
	e := entryOf(100, 7, 5*second, 60)
	e.Wildcard = "*.example.org."
	if _, ok := s.Put(key, Positive, e); !ok {
		t.Fatal("not stored")
	}
	v := s.View(key)
	defer v.Close()
	if v.Record(Negative) != nil || v.Record(Retained) != nil {
		t.Error("records of kinds that were not stored")
	}
	r := v.Record(Positive)
	if r == nil {
		t.Fatal("not found")
	}
	a := r.Answer()
	if r.Kind() != Positive || r.TTL() != 60 || r.Stored() != 5*second || !r.Answering() || r.Wildcard() != e.Wildcard || r.Hits() != 0 ||
		r.Flags() != 7 || a.Flags != 7 || a.Counts != e.Answer.Counts || !bytes.Equal(a.Body, e.Answer.Body) || !bytes.Equal(a.TTLs, e.Answer.TTLs) {
		t.Errorf("read back %+v %+v, stored %+v", r, a, e)
	}
	for _, tc := range []struct {
		now  Time
		want int64
	}{{5 * second, 60}, {6*second - 1, 60}, {6 * second, 59}, {65 * second, 0}, {70 * second, -5}} {
		if got := r.Left(tc.now); got != tc.want {
			t.Errorf("Left(%v) = %d, want %d", time.Duration(tc.now), got, tc.want)
		}
	}
}

func TestKindsStandBesideEachOther(t *testing.T) {
	s := open(t, Options{})
	key := keyOf(t, 1)
	s.Put(key, Positive, entryOf(10, 1, 0, 60))
	s.Put(key, Negative, entryOf(20, 2, 0, 60))
	for k, want := range map[Kind]byte{Positive: 1, Negative: 2} {
		if got, ok := read(s, key, k); !ok || got != want {
			t.Errorf("kind %d: %d %t, want %d", k, got, ok, want)
		}
	}
	if s.Len(Positive) != 1 || s.Len(Negative) != 1 {
		t.Errorf("Len: %d positive, %d negative, want 1 and 1", s.Len(Positive), s.Len(Negative))
	}
	s.Remove(key, Positive)
	if _, ok := read(s, key, Positive); ok {
		t.Error("removed record is still found")
	}
	if _, ok := read(s, key, Negative); !ok {
		t.Error("record of another kind was removed too")
	}
}

func TestRetain(t *testing.T) {
	s := open(t, Options{})
	key := keyOf(t, 1)
	s.Put(key, Positive, entryOf(10, 1, 0, 60))
	s.Retain(key)
	noAnswer := entryOf(10, 2, 0, 60)
	noAnswer.Answering = false
	s.Put(key, Positive, noAnswer)
	s.Retain(key) // a record that does not answer must not displace one that does
	if got, _ := read(s, key, Retained); got != 1 {
		t.Errorf("retained record is %d, want 1", got)
	}
	if got, _ := read(s, key, Positive); got != 2 {
		t.Errorf("positive record is %d, want 2", got)
	}
	if s.Len(Positive) != 2 {
		t.Errorf("Len(Positive) = %d, want 2", s.Len(Positive))
	}
	s.Put(key, Positive, entryOf(10, 3, 0, 60))
	s.Retain(key)
	if got, _ := read(s, key, Retained); got != 3 || s.Len(Positive) != 1 {
		t.Errorf("retained record is %d of %d, want 3 of 1", got, s.Len(Positive))
	}
	consistent(t, s)
}

func TestExpiredAreReclaimed(t *testing.T) {
	for _, tc := range []struct {
		name  string
		stale time.Duration
		now   Time
		want  int
	}{
		{"just before", 0, 10*second - 1, 10},
		{"expired", 0, 10 * second, 0},
		{"stale but kept", time.Minute, 69 * second, 10},
		{"too stale", time.Minute, 70 * second, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := open(t, Options{Stale: tc.stale})
			for i := range 10 {
				s.Put(keyOf(t, i), Positive, entryOf(10, 1, 0, 10))
			}
			s.Put(keyOf(t, 10), Negative, entryOf(10, 1, 0, 3600))
			gone := s.Sweep(tc.now)
			if s.Len(Positive) != tc.want || gone.Expired != 10-tc.want || gone.Live != [classes]int{} {
				t.Errorf("%d left, %+v gone; want %d left", s.Len(Positive), gone, tc.want)
			}
			if s.Len(Negative) != 1 {
				t.Error("a record that has not expired is gone")
			}
			consistent(t, s)
		})
	}
}

func TestPutReclaims(t *testing.T) {
	s := open(t, Options{Bytes: MinBytes})
	for i := range 1000 {
		s.Put(keyOf(t, i), Positive, entryOf(10, 1, 0, 10))
	}
	for i := 1000; i < 1100; i++ {
		s.Put(keyOf(t, i), Positive, entryOf(10, 1, 20*second, 10))
	}
	if n := s.Len(Positive); n > 100 {
		t.Errorf("%d records, of which 100 are fresh", n)
	}
}

func TestEntryLimits(t *testing.T) {
	s := open(t, Options{Positive: 2000, Negative: 1000, Bytes: 4 << 20})
	var evicted [classes]int
	for i := range 10000 {
		for k, n := range map[Kind]int{Positive: 10, Negative: 200} {
			gone, ok := s.Put(keyOf(t, i), k, entryOf(n, 1, 0, 60))
			if !ok {
				t.Fatal("not stored")
			}
			evicted[0] += gone.Live[0]
			evicted[1] += gone.Live[1]
		}
	}
	if p, n := s.Len(Positive), s.Len(Negative); p > 2000+len(s.shards) || n > 1000+len(s.shards) || p < 1800 || n < 900 {
		t.Errorf("%d positive and %d negative records, limits are 2000 and 1000", p, n)
	}
	if evicted[0] != 10000-s.Len(Positive) || evicted[1] != 10000-s.Len(Negative) {
		t.Errorf("%v evictions reported; %d and %d records of 10000 are left", evicted, s.Len(Positive), s.Len(Negative))
	}
	consistent(t, s)
}

func TestUsedOutlivesUnused(t *testing.T) {
	s := open(t, Options{Bytes: MinBytes})
	const hot = 50
	for i := range hot {
		s.Put(keyOf(t, i), Positive, entryOf(16, 1, 0, 3600))
	}
	for i := hot; i < 50000; i++ { // names asked for once
		s.Put(keyOf(t, i), Positive, entryOf(16, 1, 0, 3600))
		v := s.View(keyOf(t, i%hot))
		if r := v.Record(Positive); r != nil {
			r.Touch()
		}
		v.Close()
	}
	for i := range hot {
		if _, ok := read(s, keyOf(t, i), Positive); !ok {
			t.Errorf("record %d was used all the time and evicted", i)
		}
	}
	consistent(t, s)
}

func TestGhostGoesToMain(t *testing.T) {
	s := open(t, Options{Bytes: MinBytes})
	key := keyOf(t, 0)
	s.Put(key, Positive, entryOf(16, 1, 0, 3600))
	for i := 1; ; i++ {
		s.Put(keyOf(t, i), Positive, entryOf(16, 1, 0, 3600))
		if _, ok := read(s, key, Positive); !ok {
			break
		}
	}
	s.Put(key, Positive, entryOf(16, 1, 0, 3600))
	v := s.View(key)
	defer v.Close()
	if v.Record(Positive).state != stateMain {
		t.Error("a key that came back soon after its eviction is not in the main queue")
	}
}

func TestCount(t *testing.T) {
	s := open(t, Options{})
	key := keyOf(t, 1)
	s.Put(key, Positive, entryOf(1, 1, 0, 3600))
	v := s.View(key)
	defer v.Close()
	r := v.Record(Positive)
	for i, tc := range []struct {
		at   Time
		want uint32
	}{{1 * second, 1}, {2 * second, 2}, {12 * second, 3}, {22*second + Time(time.Millisecond), 1}, {23 * second, 2}} {
		if got := r.Count(tc.at, 10*time.Second); got != tc.want || r.Hits() != tc.want {
			t.Errorf("use %d: counted %d, want %d", i, got, tc.want)
		}
	}
}

func TestRefreshKeepsCount(t *testing.T) {
	for _, size := range []int{10, 100} { // in place, and elsewhere
		for _, refresh := range []bool{true, false} {
			s := open(t, Options{})
			key := keyOf(t, 1)
			s.Put(key, Positive, entryOf(10, 1, 0, 3600))
			v := s.View(key)
			v.Record(Positive).Count(1*second, time.Minute)
			v.Record(Positive).Count(2*second, time.Minute)
			v.Close()
			e := entryOf(size, 1, 3*second, 3600)
			e.Refresh, e.Of, e.Seen = refresh, Positive, 2*second
			s.Put(key, Positive, e)
			want := uint32(1)
			if refresh {
				want = 3
			}
			v = s.View(key)
			if got := v.Record(Positive).Count(4*second, time.Minute); got != want {
				t.Errorf("body of %d bytes, refresh %t: third use counts as %d, want %d", size, refresh, got, want)
			}
			v.Close()
		}
	}
}

func TestRetry(t *testing.T) {
	s := open(t, Options{})
	key := keyOf(t, 1)
	s.Put(key, Positive, entryOf(1, 1, 0, 3600))
	may := func(at Time) bool {
		v := s.View(key)
		defer v.Close()
		return v.Record(Positive).Retry(at)
	}
	if !may(0) {
		t.Error("a new record may not be refreshed")
	}
	s.Retry(key, Positive, 30*second)
	if may(29*second) || !may(30*second) {
		t.Error("refresh must be allowed at 30 s, not before")
	}
	s.Retry(key, Positive, 0)
	if !may(1 * second) {
		t.Error("refresh is still forbidden")
	}
}

func TestClose(t *testing.T) {
	s := open(t, Options{})
	s.Put(keyOf(t, 1), Positive, entryOf(1, 1, 0, 3600))
	s.Close()
	if _, ok := read(s, keyOf(t, 1), Positive); ok || s.Len(Positive) != 0 {
		t.Error("closed store still has records")
	}
	if _, ok := s.Put(keyOf(t, 1), Positive, entryOf(1, 1, 0, 3600)); ok {
		t.Error("closed store stores")
	}
}

// TestViewKeepsMemory: a reader of a record keeps its memory, even if it has the last
// reference to the store.
func TestViewKeepsMemory(t *testing.T) {
	key := keyOf(t, 1)
	collected := make(chan struct{})
	view := func() View {
		s, err := New(Options{Bytes: MinBytes})
		if err != nil {
			t.Fatal(err)
		}
		s.Put(key, Positive, entryOf(16, 7, 0, 60))
		runtime.AddCleanup(s, func(done chan struct{}) { close(done) }, collected)
		return s.View(key)
	}
	v := view()
	deadline := time.After(time.Minute)
	for waiting := true; waiting; {
		runtime.GC()
		select {
		case <-collected:
			waiting = false
		case <-deadline:
			t.Fatal("the store is not collected")
		default:
			runtime.Gosched()
		}
	}
	if got := v.Record(Positive).Answer().Body[0]; got != 7 {
		t.Errorf("body starts with %d, want 7", got)
	}
	v.Close()
}

func TestBudgetOutOfRange(t *testing.T) {
	for _, n := range []int{0, MinBytes - 1, MaxBytes + 1} {
		if _, err := New(Options{Bytes: n}); err == nil {
			t.Errorf("budget of %d bytes: no error", n)
		}
	}
}

func TestLargestAnswerFits(t *testing.T) {
	s := open(t, Options{Bytes: MinBytes})
	for i := range 200 {
		if _, ok := s.Put(keyOf(t, i), Positive, entryOf(1<<16-300, byte(i), 0, 60)); !ok {
			t.Fatalf("answer %d of 64 KiB was not stored", i)
		}
		if got, ok := read(s, keyOf(t, i), Positive); !ok || got != byte(i) {
			t.Fatalf("answer %d reads %d %t", i, got, ok)
		}
	}
	consistent(t, s)
}

// consistent checks that ring, index, queues and counts of every shard agree, and that the
// budget is kept.
func consistent(t testing.TB, s *Store) {
	t.Helper()
	if n := s.Bytes(); n > s.bytes {
		t.Errorf("%d bytes in use, budget is %d", n, s.bytes)
	}
	for i := range s.shards {
		sh := &s.shards[i]
		records, live := 0, uint32(0)
		var counts [kinds]int
		sh.ring.each(func(off uint32) {
			r := sh.at(off)
			records++
			live += r.size()
			counts[r.kind]++
			if sh.index.find(r.hash, off) == noSlot {
				t.Errorf("shard %d: record at %d is not in the index", i, off)
			}
		})
		queued := 0
		for c := range sh.queues {
			for j := range sh.queues[c] {
				q := &sh.queues[c][j]
				n, bytes, newer := 0, uint32(0), none
				for off := q.newest; off != none; off = sh.at(off).older {
					r := sh.at(off)
					if r.newer != newer || int(r.state) != j+stateSmall || r.kind.class() != c {
						t.Fatalf("shard %d queue %d/%d: record at %d: newer %d, state %d, kind %d", i, c, j, off, r.newer, r.state, r.kind)
					}
					newer = off
					n++
					bytes += r.size()
				}
				if q.oldest != newer || n != q.count || bytes != q.bytes {
					t.Errorf("shard %d queue %d/%d: %d records of %d bytes, counted %d of %d", i, c, j, n, bytes, q.count, q.bytes)
				}
				queued += n
			}
		}
		if records != sh.index.count || records != queued || live != sh.ring.live || counts != sh.counts || live > sh.ring.limit() {
			t.Errorf("shard %d: %d records of %d bytes in the ring (it says %d), %d in the index, %d in the queues, counts %v and %v",
				i, records, live, sh.ring.live, sh.index.count, queued, counts, sh.counts)
		}
	}
}

// TestConcurrent: readers check records while writers overwrite, remove, evict and sweep. It
// finds most under the race detector.
func TestConcurrent(t *testing.T) {
	s := open(t, Options{Bytes: MinBytes})
	const names = 5000
	keys := make([]wire.Key, names)
	for i := range keys {
		keys[i] = keyOf(t, i)
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 9))
			for i := range 20000 {
				n := r.IntN(names)
				now := Time(i) * second / 100
				switch {
				case g < 2: // readers
					v := s.View(keys[n])
					if rec := v.Record(Positive); rec != nil {
						a := rec.Answer()
						if len(a.Body) < 8 || binary.LittleEndian.Uint32(a.Body) != uint32(n) || !bytes.Equal(a.Body[4:8], a.Body[len(a.Body)-4:]) {
							t.Errorf("record of name %d has another's body", n)
						}
						rec.Touch()
						rec.Count(now, time.Minute)
					}
					v.Close()
				case i%1000 == 0:
					s.Sweep(now)
				case i%50 == 0:
					s.Remove(keys[n], Positive)
				default:
					e := entryOf(8+4*r.IntN(50), 0, now, uint32(r.IntN(100)))
					for j := 0; j < len(e.Answer.Body); j += 4 {
						binary.LittleEndian.PutUint32(e.Answer.Body[j:], uint32(n))
					}
					s.Put(keys[n], Positive, e)
				}
			}
		})
	}
	wg.Wait()
	consistent(t, s)
}

func TestViewAllocates(t *testing.T) {
	s := open(t, Options{})
	key := keyOf(t, 1)
	s.Put(key, Positive, entryOf(16, 1, 0, 60))
	if n := testing.AllocsPerRun(100, func() {
		v := s.View(key)
		v.Record(Positive).Touch()
		v.Close()
	}); n != 0 {
		t.Errorf("a hit allocates %v times", n)
	}
}

// The source of an answer costs no memory.
func TestRecordSize(t *testing.T) {
	if headSize != 64 {
		t.Errorf("a record's head has %d bytes", headSize)
	}
	s := open(t, Options{})
	key := keyOf(t, 1)
	e := entryOf(10, 1, 0, 60)
	e.Source = 0xffff
	s.Put(key, Positive, e)
	v := s.View(key)
	defer v.Close()
	r := v.Record(Positive)
	if r.Source() != 0xffff {
		t.Errorf("source %d", r.Source())
	}
	for want := range uint32(MaxUses + 2) {
		if got := r.Uses(); got != min(want, MaxUses) {
			t.Errorf("%d uses, want %d", got, want)
		}
		r.Touch()
	}
}

func TestRemoveIf(t *testing.T) {
	s := open(t, Options{})
	const n = 1000
	for i := range n {
		kind := Positive
		if i%2 == 1 {
			kind = Negative
		}
		s.Put(keyOf(t, i), kind, entryOf(10, byte(i), 0, 3600))
	}
	s.Retain(keyOf(t, 4))
	s.RemoveIf(func(_ wire.Key, r *Record) bool { return r.Answer().Body[0]%4 == 0 })
	for i := range n {
		kind := Positive
		if i%2 == 1 {
			kind = Negative
		}
		if _, there := read(s, keyOf(t, i), kind); there == (byte(i)%4 == 0) {
			t.Errorf("%d: there %t", i, there)
		}
	}
	if _, there := read(s, keyOf(t, 4), Retained); there {
		t.Error("a retained record was passed over")
	}
	if p, d := s.Len(Positive), s.Len(Negative); p != n/4 || d != n/2 {
		t.Errorf("%d positive and %d negative answers are counted", p, d)
	}
	// The room is there again.
	for i := range n {
		if _, ok := s.Put(keyOf(t, i), Positive, entryOf(100, 1, 0, 3600)); !ok {
			t.Fatal("not stored")
		}
	}
}

func BenchmarkView(b *testing.B) {
	s := open(b, Options{Bytes: 32 << 20})
	keys := make([]wire.Key, 100000)
	for i := range keys {
		keys[i] = keyOf(b, i)
		s.Put(keys[i], Positive, entryOf(16, 1, 0, 60))
	}
	b.Run("serial", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			v := s.View(keys[i%len(keys)])
			if r := v.Record(Positive); r != nil {
				r.Touch()
			}
			v.Close()
			i += 7919
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for i := rand.IntN(len(keys)); pb.Next(); i += 7919 {
				v := s.View(keys[i%len(keys)])
				if r := v.Record(Positive); r != nil {
					r.Touch()
				}
				v.Close()
			}
		})
	})
}

// BenchmarkPut writes names that are not there into a full store.
func BenchmarkPut(b *testing.B) {
	s := open(b, Options{Bytes: 32 << 20})
	e := entryOf(16, 1, 0, 3600)
	key := bytes.Clone(keyOf(b, 1000000))
	i := 0
	next := func() {
		i++
		binary.LittleEndian.PutUint32(key[1:], uint32(i))
		s.Put(key, Positive, e)
	}
	for range 400000 {
		next()
	}
	b.ReportAllocs()
	for b.Loop() {
		next()
	}
}
