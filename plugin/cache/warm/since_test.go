package warm

import (
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/engines"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// TestSince: at its end the predecessor gives the answers that came since it was asked, and the
// successor keeps its own where they are as new.
func TestSince(t *testing.T) {
	for _, flushed := range []bool{false, true} {
		from, to := opened(t, engine.Options{}), opened(t, engine.Options{})
		asked := time.Now()
		offer, want := offers([]engines.State{from}, time.Now)[0], wanted(to)
		var kinds []byte
		give := func(send func(time.Time, func([]byte) error) error) (answers int) {
			t.Helper()
			kinds = nil
			err := send(asked, func(piece []byte) error {
				kinds = append(kinds, piece[0])
				n, err := want.Receive(asked, slices.Clone(piece))
				answers += n
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return answers
		}
		fill := func(e *engine.Engine, name, address string, stored time.Duration, source string) {
			e.Put(keyOf(t, name, dns.TypeA), store.Positive, entryOf(t, name, address, e.Store().Time(asked.Add(stored)), 300), engine.Asked{From: source})
		}
		fill(from.Engine, "old.example.org.", "192.0.2.1", -time.Second, "192.0.2.51:53")
		fill(from.Engine, "refreshed.example.org.", "192.0.2.1", -9*time.Second, "192.0.2.51:53")
		if n := give(offer.Send); n != 2 {
			t.Fatalf("%d answers", n)
		}

		// Both go on.
		fill(from.Engine, "refreshed.example.org.", "192.0.2.2", time.Millisecond, "192.0.2.52:53")
		fill(from.Engine, "new.example.org.", "192.0.2.2", time.Millisecond, "192.0.2.52:53")
		fill(from.Engine, "own.example.org.", "192.0.2.2", time.Millisecond, "192.0.2.52:53")
		denial := &store.Entry{Stored: from.Engine.Store().Time(asked.Add(time.Millisecond)), TTL: 60, Answer: wire.Answer{Flags: dns.RcodeNameError}}
		from.Engine.Put(keyOf(t, "no.example.org.", dns.TypeA), store.Negative, denial, engine.Asked{})
		fill(to.Engine, "own.example.org.", "192.0.2.3", 2*time.Millisecond, "192.0.2.53:53")
		taken := 2
		if flushed {
			to.Engine.Flush(engine.Scope{Name: keyOf(t, "new.example.org.", dns.TypeA).Name()}, func(wire.Key, *store.Record) {})
			taken = 0
		}
		if n := give(offer.Again); n != taken {
			t.Errorf("flushed %t: %d answers, want %d", flushed, n, taken)
		}
		for name, source := range map[string][2]string{ // by whether something was flushed
			"old.example.org.":       {"192.0.2.51:53", "192.0.2.51:53"},
			"refreshed.example.org.": {"192.0.2.52:53", "192.0.2.51:53"},
			"new.example.org.":       {"192.0.2.52:53", ""},
			"own.example.org.":       {"192.0.2.53:53", "192.0.2.53:53"},
			"no.example.org.":        {"", ""},
		} {
			v, got := to.Engine.Store().View(keyOf(t, name, dns.TypeA)), ""
			if r := v.Record(store.Positive); r != nil {
				got = to.Engine.Source(r)
			}
			if v.Record(store.Negative) != nil {
				got = "denied"
			}
			v.Close()
			if want := source[map[bool]int{true: 1}[flushed]]; got != want {
				t.Errorf("flushed %t: %s is from %q, want %q", flushed, name, got, want)
			}
		}

		// What belongs to the first time must not come to an engine in use.
		for _, kind := range []byte{pieceRules, pieceLayout, pieceNames, pieceFlushed} {
			if slices.Contains(kinds, kind) {
				t.Errorf("a piece %d among %v", kind, kinds)
			}
			if _, err := want.Receive(asked, append([]byte{kind}, make([]byte, 12)...)); err == nil {
				t.Errorf("piece %d was taken", kind)
			}
		}
	}
}
