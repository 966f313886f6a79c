package engine

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

func name(t testing.TB, s string) []byte {
	t.Helper()
	n, err := wire.AppendName(nil, s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// put stores an answer made of the records, which are at the name of the question
// if they give none.
func put(t testing.TB, e *Engine, question string, qtype uint16, do bool, asked Asked, records ...string) {
	t.Helper()
	var bits wire.Bits
	if do {
		bits = wire.DO
	}
	k, err := wire.AppendKey(nil, question, qtype, dns.ClassINET, bits)
	if err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg).SetQuestion(question, qtype)
	kind := n
	for _, text := range records {
		kind = p
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	a, err := wire.Pack(m)
	if err != nil {
		t.Fatal(err)
	}
	e.Put(k, kind, &store.Entry{TTL: 100, Answer: a, Answering: kind == p}, asked)
}

func count(e *Engine) int { return e.Store().Len(p) + e.Store().Len(n) }

func TestFlush(t *testing.T) {
	fill := func(t *testing.T, e *Engine, asked Asked) {
		put(t, e, "www.example.org.", dns.TypeA, false, asked, "www.example.org. 60 IN A 192.0.2.1")
		put(t, e, "www.example.org.", dns.TypeA, true, asked, "www.example.org. 60 IN A 192.0.2.1")
		put(t, e, "www.example.org.", dns.TypeAAAA, false, asked)
		put(t, e, "a.www.example.org.", dns.TypeA, false, asked, "a.www.example.org. 60 IN A 192.0.2.2")
		put(t, e, "notexample.org.", dns.TypeA, false, asked, "notexample.org. 60 IN A 192.0.2.3")
		put(t, e, "alias.example.net.", dns.TypeA, false, asked, "alias.example.net. 60 IN CNAME www.example.org.", "www.example.org. 60 IN A 192.0.2.1")
	}
	for _, tc := range []struct {
		name  string
		scope Scope
		left  int
	}{
		{"everything", Scope{}, 0},
		{"name", Scope{Name: name(t, "www.example.org.")}, 2},
		{"zone", Scope{Name: name(t, "example.org."), Below: true}, 1},
		{"name of a zone", Scope{Name: name(t, "example.org.")}, 6},
		{"name that only an alias holds", Scope{Name: name(t, "alias.example.net.")}, 5},
		{"root", Scope{Name: name(t, "."), Below: true}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := open(t, Options{})
			before := e.Generation()
			fill(t, e, Asked{Generation: before})
			removed := 0
			e.Flush(tc.scope, func(wire.Key, *store.Record) { removed++ })
			if got := count(e); got != tc.left || removed != 6-tc.left {
				t.Fatalf("%d left and %d removed, want %d and %d", got, removed, tc.left, 6-tc.left)
			}
			// The same answers, asked for before: what was flushed stays away.
			fill(t, e, Asked{Generation: before})
			if got := count(e); got != tc.left {
				t.Errorf("%d after answers that were on their way, want %d", got, tc.left)
			}
			fill(t, e, Asked{Generation: e.Generation()})
			if got := count(e); got != 6 {
				t.Errorf("%d after answers that were asked for later, want 6", got)
			}
		})
	}
}

// TestManyFlushes: an answer that was on its way for longer than flushes are
// remembered is not stored.
func TestManyFlushes(t *testing.T) {
	e := open(t, Options{})
	remembered := len(e.flushes.last)
	for _, tc := range []struct {
		flushes int
		stored  bool
	}{{1, true}, {remembered, true}, {remembered + 1, false}} {
		asked := Asked{Generation: e.Generation()}
		for range tc.flushes {
			e.Flush(Scope{Name: name(t, "other.example.org.")}, func(wire.Key, *store.Record) {})
		}
		put(t, e, "www.example.org.", dns.TypeA, false, asked, "www.example.org. 60 IN A 192.0.2.1")
		if stored := count(e) == 1; stored != tc.stored {
			t.Errorf("after %d flushes of another name: stored %t", tc.flushes, stored)
		}
		e.Flush(Scope{}, func(wire.Key, *store.Record) {})
	}
}

// TestFlushBesidePuts: no answer that was asked for before a flush is there
// afterwards, however close they come.
func TestFlushBesidePuts(t *testing.T) {
	e := open(t, Options{})
	answer := entry(t, 0, "192.0.2.1", 0, 100).Answer
	for range 200 {
		asked := Asked{Generation: e.Generation(), From: "192.0.2.53:53"}
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				e.Put(key, p, &store.Entry{TTL: 100, Answer: answer, Answering: true}, asked)
			})
		}
		e.Flush(Scope{}, func(wire.Key, *store.Record) {})
		wg.Wait()
		if count(e) != 0 {
			t.Fatal("an answer came back")
		}
	}
}

// TestSources: a record says where its answer came from, as long as there is
// room, and room is made when answers go.
func TestSources(t *testing.T) {
	e := open(t, Options{})
	now := store.Time(time.Hour)
	source := func(i int) string {
		v := e.Store().View(keyNumber(t, i))
		defer v.Close()
		return e.Source(v.Record(p))
	}
	putFrom := func(i int, from string) {
		ent := entry(t, 0, "192.0.2.1", now, 100)
		e.Put(keyNumber(t, i), p, ent, Asked{From: from})
	}
	for i := range maxSources + 1 {
		putFrom(i, fmt.Sprint("upstream ", i))
	}
	if a, b := source(maxSources-1), source(maxSources); a != fmt.Sprint("upstream ", maxSources-1) || b != "" {
		t.Fatalf("the last sources are %q and %q", a, b)
	}
	for i := range maxSources / 2 {
		e.Store().Remove(keyNumber(t, i), p)
	}
	for i := range maxSources / 2 {
		putFrom(i, fmt.Sprint("later ", i))
	}
	for i := range maxSources {
		want := fmt.Sprint("upstream ", i)
		if i < maxSources/2 {
			want = fmt.Sprint("later ", i)
		}
		if got := source(i); got != want {
			t.Fatalf("answer %d is from %q, want %q", i, got, want)
		}
	}
	// Full again, it is not searched through for every answer.
	putFrom(0, "one more")
	e.Store().Remove(keyNumber(t, 1), p)
	putFrom(0, "another")
	if got := source(0); got != "" {
		t.Errorf("room was made for %q at once", got)
	}
	now += forgetEvery
	putFrom(0, "later still")
	if got := source(0); got != "later still" {
		t.Errorf("the answer is from %q", got)
	}
}

func keyNumber(t testing.TB, i int) wire.Key {
	t.Helper()
	k, err := wire.AppendKey(nil, fmt.Sprintf("n%d.example.org.", i), dns.TypeA, dns.ClassINET, 0)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func BenchmarkPut(b *testing.B) {
	e := open(b, Options{})
	ent := entry(b, 0, "192.0.2.1", 0, 100)
	asked := Asked{Generation: e.Generation(), From: "192.0.2.53:53"}
	b.ReportAllocs()
	for b.Loop() {
		e.Put(key, p, ent, asked)
	}
}
