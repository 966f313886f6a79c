package warm

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/handover"
	"github.com/trackless-dns/trackless/plugin/cache/cut"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/engines"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// keepAll keeps every answer for an hour.
func keepAll(wire.Key, store.Kind, wire.Flags) (time.Duration, bool) { return time.Hour, true }

// opened returns an engine that stays open until the test ends.
func opened(t testing.TB, o engine.Options) engines.State {
	t.Helper()
	if o.Store.Bytes == 0 {
		o.Store.Bytes = 4 << 20
	}
	e, err := engine.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return engines.State{Fingerprint: "f", Rules: "r", Engine: e, Keep: keepAll}
}

func keyOf(t testing.TB, name string, qtype uint16) wire.Key {
	t.Helper()
	key, err := wire.AppendKey(nil, name, qtype, dns.ClassINET, 0)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// entryOf returns an entry with an address record.
func entryOf(t testing.TB, name, address string, stored store.Time, ttl uint32) *store.Entry {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, dns.TypeA)
	rr, err := dns.NewRR(name + " 300 IN A " + address)
	if err != nil {
		t.Fatal(err)
	}
	m.Response, m.Answer = true, []dns.RR{rr}
	a, err := wire.Pack(m)
	if err != nil {
		t.Fatal(err)
	}
	return &store.Entry{Stored: stored, TTL: ttl, Answer: a, Answering: true}
}

// clocks are when the successor noted the time before it asked, and when the predecessor did,
// which is later.
type clocks struct{ successor, predecessor time.Time }

// wanted returns the section of an engine.
func wanted(s engines.State) handover.Want {
	return Caches{func() []engines.State { return []engines.State{s} }}.Wants()[0]
}

// move gives the answers of one engine to another one, and returns their number.
func move(t testing.TB, from, to engines.State, at clocks) (answers int, err error) {
	t.Helper()
	offer := offers([]engines.State{from}, func() time.Time { return at.predecessor })[0]
	want := wanted(to)
	if offer.Section != want.Section {
		t.Fatalf("sections %v and %v", offer.Section, want.Section)
	}
	sendErr := offer.Send(at.predecessor, func(piece []byte) error {
		if err == nil {
			var n int
			n, err = want.Receive(at.successor, slices.Clone(piece))
			answers += n
		}
		return nil
	})
	return answers, errors.Join(err, sendErr)
}

func TestEverythingOfAnAnswer(t *testing.T) {
	from, to := opened(t, engine.Options{Stale: time.Hour}), opened(t, engine.Options{Stale: time.Hour})
	now := time.Now()
	s := from.Engine.Store()
	key := keyOf(t, "www.example.org.", dns.TypeA)
	want := entryOf(t, "www.example.org.", "192.0.2.1", s.Time(now.Add(-7*time.Second)), 60)
	want.Wildcard, want.ForAll, want.Mark, want.Hits, want.Seen = "*.example.org.", true, 0x43, 9, s.Time(now.Add(-2*time.Second))
	want.History = store.History{Uses: 2, Proven: true, Retry: s.Time(now.Add(5 * time.Second))}
	from.Engine.Put(key, store.Positive, want, engine.Asked{From: "192.0.2.53:53"})
	denial := &store.Entry{Stored: s.Time(now), TTL: 5, Answer: wire.Answer{Flags: dns.RcodeNameError}}
	from.Engine.Put(keyOf(t, "no.example.org.", dns.TypeAAAA), store.Negative, denial, engine.Asked{})

	if n, err := move(t, from, to, clocks{now, now}); n != 2 || err != nil {
		t.Fatalf("%d answers, %v", n, err)
	}
	at := to.Engine.Store().Time(now)
	v := to.Engine.Store().View(key)
	defer v.Close()
	r := v.Record(store.Positive)
	if r == nil {
		t.Fatal("not taken")
	}
	a := r.Answer()
	if r.TTL() != 60 || r.Stored() != at-store.Time(7*time.Second) || !r.Answering() || !r.ForAll() || r.Wildcard() != want.Wildcard || r.Mark() != 0x43 ||
		a.Flags != want.Answer.Flags || a.Counts != want.Answer.Counts || !bytes.Equal(a.Body, want.Answer.Body) || !bytes.Equal(a.TTLs, want.Answer.TTLs) {
		t.Errorf("taken %+v %+v, want %+v", r, a, want)
	}
	if from := to.Engine.Source(r); from != "192.0.2.53:53" {
		t.Errorf("source %q", from)
	}
	if h := r.History(at); r.Hits() != 9 || h.Uses != 2 || !h.Proven || r.Retry(at+store.Time(4*time.Second)) || !r.Retry(at+store.Time(6*time.Second)) {
		t.Errorf("hits %d, history %+v", r.Hits(), h)
	}
	if last := at - r.LastUse(at); last < store.Time(1990*time.Millisecond) || last > store.Time(2010*time.Millisecond) {
		t.Errorf("last used %v ago", time.Duration(last))
	}
}

// TestTTLsNeverGrow: whatever the engines' epochs are, and however long the question takes,
// an answer has no more time left than it has in the engine that gives it.
func TestTTLsNeverGrow(t *testing.T) {
	for _, took := range []time.Duration{0, time.Microsecond, 300 * time.Millisecond, time.Second, 2 * time.Second} {
		to := opened(t, engine.Options{Stale: time.Hour})
		from := opened(t, engine.Options{Stale: time.Hour}) // a later epoch
		if took == time.Second {
			from, to = to, from
		}
		r := rand.New(rand.NewPCG(1, 2))
		now := time.Now().Add(time.Minute)
		left := map[string]int64{}
		for i := range 500 {
			name := fmt.Sprintf("n%d.example.org.", i)
			s := from.Engine.Store()
			e := entryOf(t, name, "192.0.2.1", s.Time(now.Add(-time.Duration(r.IntN(60_000_000))*time.Microsecond)), uint32(1+r.IntN(100)))
			from.Engine.Put(keyOf(t, name, dns.TypeA), store.Positive, e, engine.Asked{})
			left[name] = int64(e.TTL)*int64(time.Second) - int64(s.Time(now)-e.Stored)
		}
		if _, err := move(t, from, to, clocks{now.Add(-took), now}); err != nil {
			t.Fatal(err)
		}
		st := to.Engine.Store()
		if st.Len(store.Positive) != 500 {
			t.Errorf("%d answers", st.Len(store.Positive))
		}
		st.Range(func(key wire.Key, rec *store.Record) {
			name := wire.NameText(key.Name())
			got := int64(rec.TTL())*int64(time.Second) - int64(st.Time(now)-rec.Stored())
			if got > left[name] || got < left[name]-int64(took) {
				t.Errorf("took %v: %s has %v left, and had %v", took, name, time.Duration(got), time.Duration(left[name]))
			}
		})
	}
}

// TestRules: the successor keeps what it would have stored itself.
func TestRules(t *testing.T) {
	for _, tc := range []struct {
		name    string
		edit    func(*engines.State)
		answers int
		ttl     uint32
		mark    uint8
	}{
		{"the same", func(*engines.State) {}, 1, 300, 0x60},
		{"other rules", func(s *engines.State) { s.Rules = "others" }, 1, 300, 0},
		{"a shorter lifetime", func(s *engines.State) {
			s.Keep = func(wire.Key, store.Kind, wire.Flags) (time.Duration, bool) { return 10 * time.Second, true }
		}, 1, 10, 0x60},
		{"not stored", func(s *engines.State) {
			s.Keep = func(wire.Key, store.Kind, wire.Flags) (time.Duration, bool) { return 0, false }
		}, 0, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			from, to := opened(t, engine.Options{}), opened(t, engine.Options{})
			tc.edit(&to)
			now := time.Now()
			key := keyOf(t, "www.example.org.", dns.TypeA)
			e := entryOf(t, "www.example.org.", "192.0.2.1", from.Engine.Store().Time(now), 300)
			e.Mark = 0x60
			from.Engine.Put(key, store.Positive, e, engine.Asked{})
			n, err := move(t, from, to, clocks{now, now})
			if n != tc.answers || err != nil {
				t.Errorf("%d answers, %v, want %d", n, err, tc.answers)
			}
			to.Engine.Store().Range(func(_ wire.Key, r *store.Record) {
				if r.TTL() != tc.ttl || r.Mark() != tc.mark {
					t.Errorf("TTL %d and mark %#x, want %d and %#x", r.TTL(), r.Mark(), tc.ttl, tc.mark)
				}
			})
		})
	}
}

// TestExistingNames: no denial is used for a name that exists for the predecessor, whatever
// the sizes of the two are.
func TestExistingNames(t *testing.T) {
	for _, sizes := range [][2]int{{4 << 20, 4 << 20}, {1 << 20, 8 << 20}, {8 << 20, 1 << 20}} {
		from := opened(t, engine.Options{Store: store.Options{Bytes: sizes[0]}})
		to := opened(t, engine.Options{Store: store.Options{Bytes: sizes[1]}})
		now := time.Now()
		for i := range 100 {
			from.Engine.Exists(keyOf(t, fmt.Sprintf("n%d.example.org.", i), dns.TypeA).Name(), now, time.Minute)
		}
		if _, err := move(t, from, to, clocks{now.Add(-time.Second), now}); err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			key := keyOf(t, fmt.Sprintf("n%d.example.org.", i), dns.TypeA)
			for _, after := range []time.Duration{0, time.Hour + time.Minute - time.Second} {
				if exists, _ := to.Engine.Knows(key, now.Add(after)); !exists {
					t.Errorf("sizes %v: name %d is forgotten after %v", sizes, i, after)
				}
			}
			if exists, _ := to.Engine.Knows(key, now.Add(time.Hour+time.Minute+5*time.Second)); exists {
				t.Errorf("sizes %v: name %d exists for too long", sizes, i)
			}
		}
	}
}

// TestDeniedBelow: a denial goes on to deny the names below it.
func TestDeniedBelow(t *testing.T) {
	from, to := opened(t, engine.Options{}), opened(t, engine.Options{})
	now := time.Now()
	m := new(dns.Msg).SetQuestion("com.svc.cluster.local.", dns.TypeA)
	m.Response, m.Rcode = true, dns.RcodeNameError
	soa, err := dns.NewRR("cluster.local. 30 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30")
	if err != nil {
		t.Fatal(err)
	}
	m.Ns = []dns.RR{soa}
	a, err := wire.Pack(m)
	if err != nil {
		t.Fatal(err)
	}
	e := &store.Entry{Stored: from.Engine.Store().Time(now), TTL: 30, Answer: a, Mark: engine.MarkOf(cut.Below, 0)}
	from.Engine.Put(keyOf(t, "com.svc.cluster.local.", dns.TypeA), store.Negative, e, engine.Asked{})
	if _, err := move(t, from, to, clocks{now, now}); err != nil {
		t.Fatal(err)
	}
	below := keyOf(t, "example.com.svc.cluster.local.", dns.TypeA)
	var f engine.Found
	if _, denied := to.Engine.Denied(below, &cut.Levels{Default: cut.BelowToo}, now, &f); !denied || f.Left != 30 {
		t.Errorf("denied %t, %d seconds left", denied, f.Left)
	}
}

// TestFlushedMeanwhile: answers that an operator removes do not come back.
func TestFlushedMeanwhile(t *testing.T) {
	from, to := opened(t, engine.Options{}), opened(t, engine.Options{})
	now := time.Now()
	for i := range 100 {
		name := fmt.Sprintf("n%d.example.org.", i)
		from.Engine.Put(keyOf(t, name, dns.TypeA), store.Positive, entryOf(t, name, "192.0.2.1", from.Engine.Store().Time(now), 300), engine.Asked{})
	}
	offer := offers([]engines.State{from}, time.Now)[0]
	want := wanted(to)
	var last error
	flushed := false
	err := offer.Send(now, func(piece []byte) error {
		_, last = want.Receive(now, piece)
		if piece[0] == pieceRecords && !flushed {
			flushed = true
			from.Engine.Flush(engine.Scope{Name: keyOf(t, "n1.example.org.", 1).Name()}, func(wire.Key, *store.Record) {})
		}
		return nil
	})
	if err != nil || !errors.Is(last, errFlushed) || to.Engine.Store().Len(store.Positive) != 0 {
		t.Errorf("%v, %v, %d answers", err, last, to.Engine.Store().Len(store.Positive))
	}
}

// TestFlushedEarly: the successor learns of a flush with the next piece. Its time may be over
// before the last one.
func TestFlushedEarly(t *testing.T) {
	from := opened(t, engine.Options{})
	now := time.Now()
	for i := range 200 {
		name := fmt.Sprintf("n%d.example.org.", i)
		from.Engine.Put(keyOf(t, name, dns.TypeA), store.Positive, entryOf(t, name, "192.0.2.1", from.Engine.Store().Time(now), 300), engine.Asked{})
	}
	var kinds []byte
	err := offers([]engines.State{from}, time.Now)[0].Send(now, func(piece []byte) error {
		if kinds = append(kinds, piece[0]); piece[0] == pieceRecords {
			from.Engine.Flush(engine.Scope{Name: keyOf(t, "n1.example.org.", 1).Name()}, func(wire.Key, *store.Record) {})
		}
		return nil
	})
	if n := bytes.IndexByte(kinds, pieceRecords); err != nil || n < 0 || !bytes.Equal(kinds[n+1:], []byte{pieceFlushed}) {
		t.Errorf("%v, pieces %v", err, kinds)
	}
}

// TestBegunDuringFlush: answers that a flush is about to remove are not taken either.
func TestBegunDuringFlush(t *testing.T) {
	from, to := opened(t, engine.Options{}), opened(t, engine.Options{})
	now := time.Now()
	for i := range 200 {
		name := fmt.Sprintf("n%d.example.org.", i)
		from.Engine.Put(keyOf(t, name, dns.TypeA), store.Positive, entryOf(t, name, "192.0.2.1", from.Engine.Store().Time(now), 300), engine.Asked{})
	}
	removing, begun := make(chan struct{}), make(chan struct{})
	var flush sync.WaitGroup
	flush.Go(func() {
		var once sync.Once
		from.Engine.Flush(engine.Scope{}, func(wire.Key, *store.Record) {
			once.Do(func() { close(removing); <-begun })
		})
	})
	<-removing
	want := wanted(to)
	var once sync.Once
	var last error
	err := offers([]engines.State{from}, time.Now)[0].Send(now, func(piece []byte) error {
		once.Do(func() { close(begun) })
		_, last = want.Receive(now, slices.Clone(piece))
		return nil
	})
	flush.Wait()
	if err != nil || !errors.Is(last, errFlushed) {
		t.Errorf("%v, the last piece: %v", err, last)
	}
}

// TestDenialReplacedMeanwhile: a denial that was given already, and that an answer replaced
// before the answer was given, is not served any more.
func TestDenialReplacedMeanwhile(t *testing.T) {
	from, to := opened(t, engine.Options{}), opened(t, engine.Options{})
	now := time.Now()
	at := from.Engine.Store().Time(now)
	const name = "new.example.org."
	key := keyOf(t, name, dns.TypeA)
	denial := &store.Entry{Stored: at - store.Time(5*time.Second), TTL: 60, Answer: wire.Answer{Flags: dns.RcodeNameError}, History: store.History{Uses: 2}}
	from.Engine.Put(key, store.Negative, denial, engine.Asked{})
	want := wanted(to)
	var once sync.Once
	err := offers([]engines.State{from}, time.Now)[0].Send(now, func(piece []byte) error {
		_, err := want.Receive(now, slices.Clone(piece))
		if piece[0] == pieceRecords {
			once.Do(func() { from.Engine.Put(key, store.Positive, entryOf(t, name, "192.0.2.1", at, 300), engine.Asked{}) })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	v := to.Engine.Store().View(key)
	defer v.Close()
	if v.Record(store.Positive) == nil || v.Record(store.Negative) != nil {
		t.Errorf("the answer %v, the denial %v", v.Record(store.Positive), v.Record(store.Negative))
	}
}

// TestExistsMeanwhile: a name that turns out to exist during the handover is not denied by
// a denial that was handed over.
func TestExistsMeanwhile(t *testing.T) {
	from, to := opened(t, engine.Options{}), opened(t, engine.Options{})
	now := time.Now()
	name := keyOf(t, "exists.example.org.", dns.TypeA).Name()
	denial := &store.Entry{Stored: from.Engine.Store().Time(now), TTL: 60, Answer: wire.Answer{Flags: dns.RcodeNameError}}
	from.Engine.Put(keyOf(t, "exists.example.org.", dns.TypeA), store.Negative, denial, engine.Asked{})
	want := wanted(to)
	err := offers([]engines.State{from}, time.Now)[0].Send(now, func(piece []byte) error {
		if piece[0] == pieceRecords {
			from.Engine.Exists(name, now, time.Minute)
		}
		_, err := want.Receive(now, slices.Clone(piece))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if exists, _ := to.Engine.Knows(keyOf(t, "exists.example.org.", dns.TypeA), now); !exists {
		t.Error("the successor does not know that the name exists")
	}
}

// TestUsedFirst: if the time is not enough for all answers, those in use are there.
func TestUsedFirst(t *testing.T) {
	from := opened(t, engine.Options{})
	now := time.Now()
	for i := range 2000 {
		name := fmt.Sprintf("n%d.example.org.", i)
		from.Engine.Put(keyOf(t, name, dns.TypeA), store.Positive, entryOf(t, name, "192.0.2.1", from.Engine.Store().Time(now), 300), engine.Asked{})
		if i%10 == 0 {
			var f engine.Found
			from.Engine.Lookup(keyOf(t, name, dns.TypeA), now, &f)
		}
	}
	to := opened(t, engine.Options{})
	want := wanted(to)
	_ = offers([]engines.State{from}, time.Now)[0].Send(now, func(piece []byte) error {
		if to.Engine.Store().Len(store.Positive) >= 200 {
			return errors.New("the time is over")
		}
		_, err := want.Receive(now, piece)
		return err
	})
	used := 0
	to.Engine.Store().Range(func(_ wire.Key, r *store.Record) {
		if r.Uses() > 0 {
			used++
		}
	})
	if used != 200 {
		t.Errorf("%d of 200 used answers were taken first", used)
	}
}

// FuzzReceive: bytes that are no answers are refused, and nothing else happens.
func FuzzReceive(f *testing.F) {
	from := opened(f, engine.Options{})
	now := time.Now()
	from.Engine.Put(keyOf(f, "www.example.org.", dns.TypeA), store.Positive, entryOf(f, "www.example.org.", "192.0.2.1", from.Engine.Store().Time(now), 300), engine.Asked{From: "x"})
	from.Engine.Exists(keyOf(f, "www.example.org.", dns.TypeA).Name(), now, time.Minute)
	_ = offers([]engines.State{from}, time.Now)[0].Send(now, func(piece []byte) error { f.Add(slices.Clone(piece)); return nil })
	f.Fuzz(func(t *testing.T, piece []byte) {
		to := opened(t, engine.Options{Store: store.Options{Bytes: store.MinBytes}})
		want := wanted(to)
		for _, p := range [][]byte{append([]byte{pieceRules}, "r"...), append(append([]byte{pieceLayout}, make([]byte, 11)...), 8), piece} {
			_, _ = want.Receive(now, p)
		}
		// Every answer that was taken can be served.
		var found engine.Found
		to.Engine.Store().Range(func(key wire.Key, r *store.Record) {
			a := r.Answer()
			var q wire.Query
			q.ReplyLen(&a)
			_ = wire.NameText(key.Name())
		})
		to.Engine.Lookup(keyOf(t, "www.example.org.", dns.TypeA), now, &found)
	})
}

// BenchmarkMove moves 32 MiB of answers.
func BenchmarkMove(b *testing.B) {
	from := opened(b, engine.Options{Store: store.Options{Bytes: 32 << 20}})
	now := time.Now()
	e := entryOf(b, "www.example.org.", "192.0.2.1", from.Engine.Store().Time(now), 300)
	for i := range 200_000 {
		from.Engine.Store().Put(keyOf(b, fmt.Sprintf("n%d.example.org.", i), dns.TypeA), store.Positive, e)
	}
	b.ReportAllocs()
	for b.Loop() {
		to := opened(b, engine.Options{Store: store.Options{Bytes: 32 << 20}})
		if _, err := move(b, from, to, clocks{now, now}); err != nil {
			b.Fatal(err)
		}
		to.Engine.Close()
	}
}
