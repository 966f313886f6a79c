package engine

import (
	"fmt"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// announced is what Announce gives now, as text.
func announced(e *Engine, at time.Time) (out string) {
	e.Announce(key, at, func(a *Announced) {
		out = fmt.Sprintf("rcode %d denial %t ttl %d serve %d", a.Answer.Flags.Rcode(), a.Denial, a.TTL, a.Serve)
		if want := e.store.Epoch().Add(time.Second); !a.Stored.Equal(want) {
			out += fmt.Sprintf(" stored %s, not %s", a.Stored, want)
		}
	})
	return out
}

func TestAnnounce(t *testing.T) {
	for _, row := range []struct {
		name  string
		opts  Options
		kind  store.Kind
		rcode int
		ip    string
		at    store.Time
		want  string
	}{
		{"positive", Options{}, p, 0, "192.0.2.1", 5 * sec, "rcode 0 denial false ttl 100 serve 100"},
		{"denial", Options{}, n, dns.RcodeNameError, "", 5 * sec, "rcode 3 denial true ttl 100 serve 100"},
		{"until prefetch", Options{Prefetch: 3, Gap: time.Minute, Percentage: 10}, p, 0, "192.0.2.1", 5 * sec, "rcode 0 denial false ttl 100 serve 90"},
		{"last moment", Options{}, p, 0, "192.0.2.1", 101*sec - 1, "rcode 0 denial false ttl 100 serve 100"},
		{"expired", Options{}, p, 0, "192.0.2.1", 101 * sec, ""},
		{"stale", Options{Stale: time.Hour}, p, 0, "192.0.2.1", 101 * sec, ""},
		{"prefetch is due", Options{Prefetch: 3, Gap: time.Minute, Percentage: 10}, p, 0, "192.0.2.1", 91 * sec, ""},
		{"failure", Options{}, n, dns.RcodeServerFailure, "", 5 * sec, ""},
		{"keepttl", Options{KeepTTL: true}, p, 0, "192.0.2.1", 5 * sec, ""},
		{"retained", Options{Stale: time.Hour, PreferPositive: true}, retained, 0, "192.0.2.1", 5 * sec, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := open(t, row.opts)
			e.OnWithdraw(func(wire.Key) {})
			e.store.Put(key, row.kind, entry(t, row.rcode, row.ip, sec, 100))
			if got := announced(e, e.store.Epoch().Add(time.Duration(row.at))); got != row.want {
				t.Errorf("announced %q, want %q", got, row.want)
			}
		})
	}
}

// An announced answer is withdrawn before anything changes what a query gets, and an
// answer that was not announced is not.
func TestWithdraw(t *testing.T) {
	nx := func() *store.Entry { return entry(t, dns.RcodeNameError, "", 2*sec, 100) }
	for _, row := range []struct {
		name string
		opts Options
		do   func(*Engine)
	}{
		{"same size", Options{}, func(e *Engine) { e.Put(key, p, entry(t, 0, "192.0.2.2", 2*sec, 100), Asked{}) }},
		{"other size", Options{}, func(e *Engine) {
			long := entry(t, 0, "192.0.2.2", 2*sec, 100)
			long.Wildcard = "a.wildcard.of.some.length."
			e.Put(key, p, long, Asked{})
		}},
		{"denial beside it", Options{}, func(e *Engine) { e.Put(key, n, nx(), Asked{}) }},
		{"removal", Options{}, func(e *Engine) { e.store.Remove(key, p) }},
		{"flush", Options{}, func(e *Engine) { e.Flush(Scope{}, func(wire.Key, *store.Record) {}) }},
		{"expiry", Options{}, func(e *Engine) { e.store.Sweep(200 * sec) }},
		{"close", Options{}, (*Engine).Close},
		{"retention", Options{Stale: time.Hour, PreferPositive: true}, func(e *Engine) { e.store.Retain(key) }},
		{"eviction", Options{Store: store.Options{Positive: 64}}, func(e *Engine) {
			for i := range 1000 {
				other, err := wire.AppendKey(nil, fmt.Sprintf("n%d.example.", i), dns.TypeA, dns.ClassINET, 0)
				if err != nil {
					t.Fatal(err)
				}
				e.store.Put(other, p, entry(t, 0, "192.0.2.1", 2*sec, 100))
			}
		}},
	} {
		for _, told := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, announced %t", row.name, told), func(t *testing.T) {
				e := open(t, row.opts)
				withdrawn := 0
				e.OnWithdraw(func(k wire.Key) {
					if string(k) == string(key) {
						withdrawn++
					}
				})
				e.store.Put(key, p, entry(t, 0, "192.0.2.1", sec, 100))
				if told && announced(e, e.store.Epoch().Add(5*time.Second)) == "" {
					t.Fatal("not announced")
				}
				row.do(e)
				if want := map[bool]int{true: 1}[told]; withdrawn != want {
					t.Errorf("withdrawn %d times, want %d", withdrawn, want)
				}
			})
		}
	}
}

func TestClaim(t *testing.T) {
	e := open(t, Options{})
	e.OnWithdraw(func(wire.Key) {})
	at := func(s time.Duration) time.Time { return e.store.Epoch().Add(s * time.Second) }
	if e.Claim(key, at(1)) {
		t.Error("an answer that is not there is claimed")
	}
	e.store.Put(key, p, entry(t, 0, "192.0.2.1", sec, 100))
	for _, step := range []struct {
		at   time.Duration
		want bool
	}{{2, true}, {2, false}, {3, true}, {3, false}} {
		if got := e.Claim(key, at(step.at)); got != step.want {
			t.Errorf("in second %d: %t", step.at, got)
		}
	}
	e.store.Put(key, p, entry(t, 0, "192.0.2.2", 3*sec, 100))
	if !e.Claim(key, at(3)) {
		t.Error("a new answer is not claimed at once")
	}
}

func TestUsesOfFastPaths(t *testing.T) {
	e := open(t, Options{Prefetch: 10, Gap: time.Minute, Percentage: 10})
	e.store.Put(key, p, entry(t, 0, "192.0.2.1", 0, 100))
	e.Used(key, 9, e.store.Epoch().Add(80*time.Second))
	v := e.store.View(key)
	if r := v.Record(p); r.Uses() != store.MaxUses || r.Hits() != 9 {
		t.Errorf("%d uses, %d hits", r.Uses(), r.Hits())
	}
	v.Close()
	var f Found
	if !e.Lookup(key, e.store.Epoch().Add(95*time.Second), &f) || !f.Prefetch {
		t.Error("uses by a fast path bring no prefetch")
	}
}
