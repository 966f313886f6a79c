package cache

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	kept "github.com/trackless-dns/trackless/agent/names"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// newOpened returns a cache of the registry, as a server block has it, until the test ends.
func newOpened(t *testing.T, next *upstream, keys ...string) *Cache {
	t.Helper()
	c := New()
	c.Next, c.size, c.countsAll, c.keys, c.bind = next, 1<<20, true, keys, []string{"127.0.0.1"}
	if err := c.prepare(); err != nil {
		t.Fatal(err)
	}
	if err := c.acquire(""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.disown)
	return c
}

// put stores an answer that was used so often.
func put(t *testing.T, c *Cache, name string, qtype uint16, bits wire.Bits, kind store.Kind, rcode int, uses, hits uint32) {
	t.Helper()
	key, err := wire.AppendKey(nil, name, qtype, dns.ClassINET, bits)
	if err != nil {
		t.Fatal(err)
	}
	at := c.engine.Store().Time(c.now())
	c.engine.Store().Put(key, kind, &store.Entry{Stored: at, Seen: at, TTL: 60, Hits: hits, Answer: wire.Answer{Flags: wire.Flags(rcode)}, History: store.History{Uses: uses}})
}

// labelOf names the server block of a cache.
func labelOf(c *Cache) string { return strings.Join(append(slices.Clone(c.keys), c.bind...), " ") }

func TestHottest(t *testing.T) {
	c := newOpened(t, replies(nil), "dns://example.org.:53")
	other := newOpened(t, replies(nil), "dns://.:53")
	put(t, c, "used.example.org.", dns.TypeA, 0, store.Positive, 0, 1, 0)
	put(t, c, "hot.example.org.", dns.TypeAAAA, wire.DO|wire.CD, store.Positive, 0, 3, 90)
	put(t, other, "hottest.example.", dns.TypeA, 0, store.Positive, 0, 3, 9000)
	put(t, c, "no.example.org.", dns.TypeA, 0, store.Negative, dns.RcodeNameError, 3, 0)
	for name, p := range map[string]struct {
		kind  store.Kind
		qtype uint16
		bits  wire.Bits
		rcode int
		uses  uint32
	}{
		"asked-once.":       {store.Positive, dns.TypeA, 0, 0, 0},
		"typo.":             {store.Negative, dns.TypeA, 0, dns.RcodeNameError, 2},
		"failed.":           {store.Negative, dns.TypeA, 0, dns.RcodeServerFailure, 3},
		"retained.":         {store.Retained, dns.TypeA, 0, 0, 3},
		"without-recursion": {store.Positive, dns.TypeA, wire.NoRD, 0, 3},
		"no-subnet.":        {store.Positive, dns.TypeA, wire.NoSubnet, 0, 3},
		"any.":              {store.Positive, dns.TypeANY, 0, 0, 3},
	} {
		put(t, c, name, p.qtype, p.bits, p.kind, p.rcode, p.uses, 0)
	}
	want := []kept.Name{
		{Block: "dns://.:53 127.0.0.1", Text: "hottest.example.", Type: dns.TypeA},
		{Block: "dns://example.org.:53 127.0.0.1", Text: "hot.example.org.", Type: dns.TypeAAAA, DO: true, CD: true},
		{Block: "dns://example.org.:53 127.0.0.1", Text: "no.example.org.", Type: dns.TypeA},
		{Block: "dns://example.org.:53 127.0.0.1", Text: "used.example.org.", Type: dns.TypeA},
	}
	if got := Handed.Hottest(10); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := Handed.Hottest(2); !slices.Equal(got, want[:2]) {
		t.Errorf("two of them: %v", got)
	}
}

// TestRecallIsNoUse: a name that only this process asked for is in the file of the next one only if a
// client asks, too.
func TestRecallIsNoUse(t *testing.T) {
	var asked []*dns.Msg
	next := replies(nil, "www.example.org. 60 IN A 192.0.2.1")
	answer := next.f
	next.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		asked = append(asked, r)
		return answer(ctx, w, r)
	}
	c := newOpened(t, next, "dns://.:53")
	n := kept.Name{Block: labelOf(c), Text: "WWW.example.org.", Type: dns.TypeA, DO: true}
	if need := Handed.Need(n); need != kept.Wanted {
		t.Errorf("need %v", need)
	}
	if !Handed.Ask(n) || len(asked) != 1 {
		t.Fatalf("asked %v", asked)
	}
	if r := asked[0]; r.IsEdns0() == nil || !r.IsEdns0().Do() || !r.RecursionDesired || r.CheckingDisabled {
		t.Errorf("asked %v", r)
	}
	if need := Handed.Need(n); need != kept.Cached {
		t.Errorf("after the answer: need %v", need)
	}
	if got := Handed.Hottest(10); len(got) != 0 {
		t.Errorf("the file has %v", got)
	}
	ask(t, c, question(www, func(m *dns.Msg) { m.SetEdns0(1232, true) }))
	if got := Handed.Hottest(10); len(got) != 1 || next.count() != 1 {
		t.Errorf("after a use: %v, %d questions upstream", got, next.count())
	}
}

func TestNeed(t *testing.T) {
	c := newOpened(t, replies(nil), "dns://example.org.:53")
	c.Zones = []string{"example.org."}
	if err := c.prepare(); err != nil {
		t.Fatal(err)
	}
	for text, tc := range map[string]struct {
		block string
		want  kept.Need
	}{
		"www.example.org.":                 {labelOf(c), kept.Wanted},
		"www.example.net.":                 {labelOf(c), kept.Gone},
		"a.example.org.":                   {"dns://.:53", kept.Gone},
		"..":                               {labelOf(c), kept.Gone},
		`broken\`:                          {labelOf(c), kept.Gone},
		string(make([]byte, 300)) + ".org": {labelOf(c), kept.Gone},
	} {
		if got := Handed.Need(kept.Name{Block: tc.block, Text: text, Type: 1}); got != tc.want {
			t.Errorf("%.20q: %v, want %v", text, got, tc.want)
		}
	}
}

// TestRecallFails: an upstream that fails leaves nothing in the cache.
func TestRecallFails(t *testing.T) {
	for name, next := range map[string]*upstream{
		"no response": {f: func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
			return dns.RcodeServerFailure, context.DeadlineExceeded
		}},
		"failure": replies(func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }),
		"refused": replies(func(m *dns.Msg) { m.Rcode = dns.RcodeRefused }),
		"a panic": {f: func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) { panic("a plugin") }},
	} {
		c := newOpened(t, next, "dns://.:53")
		n := kept.Name{Block: labelOf(c), Text: www, Type: dns.TypeA}
		if Handed.Ask(n) || Handed.Need(n) != kept.Wanted {
			t.Errorf("%s: there is an answer", name)
		}
		c.disown()
	}
}

// TestRecallOverTCP: a truncated response is asked for over TCP.
func TestRecallOverTCP(t *testing.T) {
	next := replies(nil, "www.example.org. 60 IN A 192.0.2.1")
	answer := next.f
	next.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		if !overTCP(w.RemoteAddr()) {
			m := new(dns.Msg).SetReply(r)
			m.Truncated = true
			return dns.RcodeSuccess, w.WriteMsg(m)
		}
		return answer(ctx, w, r)
	}
	c := newOpened(t, next, "dns://.:53")
	n := kept.Name{Block: labelOf(c), Text: www, Type: dns.TypeA}
	if !Handed.Ask(n) || next.tcp != 1 || Handed.Need(n) != kept.Cached {
		t.Errorf("%d questions over TCP", next.tcp)
	}
}

// TestRecallOfDenied: what another denial covers is not asked for.
func TestRecallOfDenied(t *testing.T) {
	next := replies(func(m *dns.Msg) {
		m.Rcode = dns.RcodeNameError
		soa, err := dns.NewRR("example.org. 60 IN SOA ns.example.org. root.example.org. 1 2 3 4 60")
		if err != nil {
			t.Error(err)
		}
		m.Ns = []dns.RR{soa}
	})
	c := newOpened(t, next, "dns://.:53")
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		if !Handed.Ask(kept.Name{Block: labelOf(c), Text: "no.example.org.", Type: qtype}) {
			t.Error("no answer")
		}
	}
	if next.count() != 1 {
		t.Errorf("%d questions", next.count())
	}
}
