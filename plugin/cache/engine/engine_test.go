package engine

import (
	"bytes"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

const (
	p        = store.Positive
	n        = store.Negative
	retained = store.Retained
)

func open(t testing.TB, o Options) *Engine {
	t.Helper()
	o.Store.Bytes = store.MinBytes
	e, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

var key, _ = wire.AppendKey(nil, "www.example.org.", dns.TypeA, dns.ClassINET, 0)

// entry makes an entry of an A record, or of SERVFAIL or NXDOMAIN.
func entry(t testing.TB, rcode int, ip string, stored store.Time, ttl uint32) *store.Entry {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion("www.example.org.", dns.TypeA)
	m.Response, m.Rcode = true, rcode
	if ip != "" {
		rr, err := dns.NewRR("www.example.org. 300 IN A " + ip)
		if err != nil {
			t.Fatal(err)
		}
		m.Answer = []dns.RR{rr}
	}
	a, err := wire.Pack(m)
	if err != nil {
		t.Fatal(err)
	}
	return &store.Entry{Stored: stored, TTL: ttl, Answer: a, Answering: ip != ""}
}

const sec = store.Time(time.Second)

// TestChoose has one row for each rule about which answer is served.
func TestChoose(t *testing.T) {
	type rec struct {
		kind  store.Kind
		rcode int
		ip    string
		ttl   uint32
	}
	good := rec{p, 0, "192.0.2.1", 100}
	old := rec{p, 0, "192.0.2.1", 10}
	empty := rec{p, 0, "", 100}
	nx := rec{n, dns.RcodeNameError, "", 100}
	oldNX := rec{n, dns.RcodeNameError, "", 10}
	fail := rec{n, dns.RcodeServerFailure, "", 100}
	kept := rec{retained, 0, "192.0.2.9", 10}
	stale := Options{Stale: time.Minute}
	prefer := Options{Stale: time.Minute, PreferPositive: true}
	const none = store.Kind(99)
	for _, tc := range []struct {
		name string
		opts Options
		recs []rec
		at   store.Time
		want store.Kind
	}{
		{"nothing", Options{}, nil, 0, none},
		{"fresh", Options{}, []rec{good}, 50 * sec, p},
		{"last second", Options{}, []rec{good}, 100*sec - 1, p},
		{"expired", Options{}, []rec{good}, 100 * sec, none},
		{"denial first", Options{}, []rec{good, nx}, 50 * sec, n},
		{"expired denial", Options{}, []rec{good, oldNX}, 50 * sec, p},
		{"failure does not hide a positive answer", Options{}, []rec{good, fail}, 50 * sec, p},
		{"failure alone", Options{}, []rec{fail}, 50 * sec, n},
		{"failure with an expired positive answer", Options{}, []rec{old, fail}, 50 * sec, n},
		{"failure with a stale positive answer", stale, []rec{old, fail}, 50 * sec, p},
		{"stale", stale, []rec{old}, 69 * sec, p},
		{"too stale", stale, []rec{old}, 70 * sec, none},
		{"stale denial first", stale, []rec{good, oldNX}, 50 * sec, n},
		{"positive preferred", prefer, []rec{good, nx}, 50 * sec, p},
		{"stale positive preferred", prefer, []rec{old, nx}, 50 * sec, p},
		{"too stale to be preferred", prefer, []rec{old, nx}, 80 * sec, n},
		{"positive without answer is not preferred", prefer, []rec{empty, nx}, 50 * sec, n},
		{"retained preferred to positive without answer", prefer, []rec{empty, kept}, 50 * sec, retained},
		{"retained preferred to a denial", prefer, []rec{kept, nx}, 50 * sec, retained},
		{"too stale retained", prefer, []rec{empty, kept}, 80 * sec, p},
		{"retained means nothing without the policy", stale, []rec{kept}, 20 * sec, none},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := open(t, tc.opts)
			for _, r := range tc.recs {
				ent := entry(t, r.rcode, r.ip, 0, r.ttl)
				if r.kind == retained {
					e.store.Put(key, p, ent)
					e.store.Retain(key)
					continue
				}
				e.store.Put(key, r.kind, ent)
			}
			if len(tc.recs) > 1 && tc.recs[1].kind == retained { // put again: Retain took it
				r := tc.recs[0]
				e.store.Put(key, p, entry(t, r.rcode, r.ip, 0, r.ttl))
			}
			var f Found
			got := none
			if e.Lookup(key, e.store.Epoch().Add(time.Duration(tc.at)), &f) {
				got = f.Kind
			}
			if got != tc.want {
				t.Errorf("kind %d is served, want %d", got, tc.want)
			}
		})
	}
}

func TestPut(t *testing.T) {
	has := func(e *Engine, k store.Kind) bool {
		v := e.store.View(key)
		defer v.Close()
		return v.Record(k) != nil
	}
	t.Run("positive displaces the denial", func(t *testing.T) {
		e := open(t, Options{})
		e.Put(key, n, entry(t, 3, "", 0, 10), Asked{})
		e.Put(key, p, entry(t, 0, "192.0.2.1", 0, 10), Asked{})
		if has(e, n) || !has(e, p) {
			t.Error("denial is still there")
		}
	})
	t.Run("denial leaves the positive answer", func(t *testing.T) {
		e := open(t, Options{})
		e.Put(key, p, entry(t, 0, "192.0.2.1", 0, 10), Asked{})
		e.Put(key, n, entry(t, 3, "", 0, 10), Asked{})
		if !has(e, n) || !has(e, p) {
			t.Error("one of the two is gone")
		}
	})
	t.Run("prefer_positive retains what answers", func(t *testing.T) {
		e := open(t, Options{PreferPositive: true, Stale: time.Hour})
		e.Put(key, n, entry(t, 3, "", 0, 10), Asked{})
		e.Put(key, p, entry(t, 0, "192.0.2.1", 0, 10), Asked{})
		if has(e, n) {
			t.Error("an answering positive leaves the denial")
		}
		e.Put(key, n, entry(t, 3, "", 0, 10), Asked{})
		e.Put(key, p, entry(t, 0, "", 0, 10), Asked{})
		if !has(e, retained) || !has(e, p) || !has(e, n) {
			t.Error("a positive without answer must leave all it does not answer for")
		}
		e.Put(key, p, entry(t, 0, "192.0.2.2", 0, 10), Asked{})
		if has(e, retained) || has(e, n) {
			t.Error("an answering positive leaves the retained one or the denial")
		}
	})
}

func TestServeTTL(t *testing.T) {
	for _, tc := range []struct {
		name string
		keep bool
		at   time.Duration
		want uint32
	}{
		{"fresh", false, 0, 100},
		{"aged", false, 40*time.Second + 1, 60},
		{"stale", false, 130 * time.Second, 0},
		{"keepttl aged", true, 40 * time.Second, 100},
		{"keepttl stale", true, 130 * time.Second, 100},
	} {
		e := open(t, Options{KeepTTL: tc.keep, Stale: time.Minute})
		e.Put(key, p, entry(t, 0, "192.0.2.1", 0, 100), Asked{})
		var f Found
		if !e.Lookup(key, e.store.Epoch().Add(tc.at), &f) || e.ServeTTL(&f) != tc.want {
			t.Errorf("%s: TTL %d, want %d", tc.name, e.ServeTTL(&f), tc.want)
		}
	}
}

func TestPrefetchIsDue(t *testing.T) {
	e := open(t, Options{Prefetch: 3, Gap: time.Minute, Percentage: 15})
	e.Put(key, p, entry(t, 0, "192.0.2.1", 0, 10), Asked{}) // due from 2 s on: 15 % of 10 s, rounded up
	var f Found
	for i, tc := range []struct {
		at   time.Duration
		want bool
	}{{1, false}, {2, false}, {3, false}, {7, false}, {8, true}, {9, true}} {
		if !e.Lookup(key, e.store.Epoch().Add(tc.at*time.Second), &f) || f.Prefetch != tc.want || f.Hits != uint32(i+1) {
			t.Errorf("use %d at %d s: due %t after %d uses, want %t", i, tc.at, f.Prefetch, f.Hits, tc.want)
		}
	}
}

func query(t testing.TB, edit func(*dns.Msg)) []byte {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion("WWW.example.org.", dns.TypeA)
	if edit != nil {
		edit(m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReply(t *testing.T) {
	at := func(e *Engine, d time.Duration) time.Time { return e.store.Epoch().Add(d) }
	msg := query(t, nil)
	var q wire.Query
	if r := q.Parse(msg); r != wire.Plain {
		t.Fatal(r)
	}
	dst := make([]byte, 4096)

	t.Run("hit", func(t *testing.T) {
		e := open(t, Options{})
		e.Put(key, p, entry(t, 0, "192.0.2.1", 0, 100), Asked{})
		n, result := e.Reply(dst, msg, &q, at(e, 30*time.Second))
		m := new(dns.Msg)
		if err := m.Unpack(dst[:n]); result != Success || err != nil {
			t.Fatalf("result %d, %v", result, err)
		}
		if m.Question[0].Name != "WWW.example.org." || len(m.Answer) != 1 || m.Answer[0].Header().Ttl != 70 || m.Answer[0].(*dns.A).A.String() != "192.0.2.1" {
			t.Errorf("reply %v", m)
		}
	})
	t.Run("denial", func(t *testing.T) {
		e := open(t, Options{})
		e.Put(key, n, entry(t, dns.RcodeNameError, "", 0, 100), Asked{})
		if n, result := e.Reply(dst, msg, &q, at(e, 0)); result != Denial || dst[3]&15 != dns.RcodeNameError || n != len(msg) {
			t.Errorf("result %d, %d bytes, rcode %d", result, n, dst[3]&15)
		}
	})
	t.Run("keepttl", func(t *testing.T) {
		e := open(t, Options{KeepTTL: true})
		e.Put(key, p, entry(t, 0, "192.0.2.1", 0, 100), Asked{})
		n, _ := e.Reply(dst, msg, &q, at(e, 30*time.Second))
		if !bytes.Equal(dst[n-10:n-6], []byte{0, 0, 0, 100}) {
			t.Errorf("TTL bytes %x", dst[n-10:n-6])
		}
	})
	t.Run("miss", func(t *testing.T) {
		if _, result := open(t, Options{}).Reply(dst, msg, &q, time.Now()); result != Miss {
			t.Errorf("result %d", result)
		}
	})
	t.Run("stale is left to the chain", func(t *testing.T) {
		e := open(t, Options{Stale: time.Minute})
		e.Put(key, p, entry(t, 0, "192.0.2.1", 0, 100), Asked{})
		if _, result := e.Reply(dst, msg, &q, at(e, 100*time.Second)); result != Refresh {
			t.Errorf("result %d", result)
		}
	})
	t.Run("prefetch is left to the chain", func(t *testing.T) {
		e := open(t, Options{Prefetch: 2, Gap: time.Minute, Percentage: 10})
		e.Put(key, p, entry(t, 0, "192.0.2.1", 0, 100), Asked{})
		if _, result := e.Reply(dst, msg, &q, at(e, 80*time.Second)); result != Success {
			t.Errorf("result %d before the last tenth", result)
		}
		if _, result := e.Reply(dst, msg, &q, at(e, 95*time.Second)); result != Refresh {
			t.Errorf("result %d on the second use in the last tenth", result)
		}
		var f Found
		if e.Lookup(key, at(e, 95*time.Second), &f); !f.Prefetch {
			t.Error("the chain does not see that prefetch is due")
		}
	})
	t.Run("too long", func(t *testing.T) {
		e := open(t, Options{})
		big := entry(t, 0, "192.0.2.1", 0, 100)
		big.Answer.Body = append(big.Answer.Body, make([]byte, 500)...)
		e.Put(key, p, big, Asked{})
		if _, result := e.Reply(dst, msg, &q, at(e, 0)); result != Long {
			t.Errorf("result %d for a client of 512 bytes", result)
		}
		edns := query(t, func(m *dns.Msg) { m.SetEdns0(1232, false) })
		var q wire.Query
		q.Parse(edns)
		if _, result := e.Reply(dst, edns, &q, at(e, 0)); result != Success {
			t.Errorf("result %d for a client of 1232 bytes", result)
		}
		if _, result := e.Reply(dst[:500], edns, &q, at(e, 0)); result != Long {
			t.Errorf("result %d for a buffer of 500 bytes", result)
		}
	})
	t.Run("allocates nothing", func(t *testing.T) {
		e := open(t, Options{Prefetch: 2, Gap: time.Minute, Percentage: 10})
		e.Put(key, p, entry(t, 0, "192.0.2.1", 0, 100), Asked{})
		now := at(e, 0)
		if allocs := testing.AllocsPerRun(100, func() {
			if q.Parse(msg) == wire.Plain {
				e.Reply(dst, msg, &q, now)
			}
		}); allocs != 0 {
			t.Errorf("%v allocations", allocs)
		}
	})
}
