//go:build load

package differential

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache"
	"github.com/trackless-dns/trackless/test/differential/script"
)

// cutConfigs are the options of the cache with cuts. The zone that denies empty non-terminals
// is not cut, as its operator would have it.
var cutConfigs = []string{
	"nxdomain name broken.example.net",
	"nxdomain name broken.example.net\nnxdomain learn cluster.local corp.example.com",
	"nxdomain name broken.example.net\nnxdomain learn cluster.local\nserve_stale 1m",
	"nxdomain name broken.example.net\nnxdomain learn cluster.local\nprefetch 2 1m 50%",
	"nxdomain name broken.example.net\ndenial 9984 1800 0",
	"nxdomain name",
}

// The rows of the table of differences between a cache with cuts and one without.
const (
	cutCame  = "a name that came meanwhile is denied until the denial of a name above or of another type expires"
	cutAsked = "the cache with cuts has asked at another time: its own answer is within its TTL, too"
)

var cutDifferences = []struct{ name, source string }{
	{cutCame, "RFC 8020 section 2, RFC 2308 section 5"},
	{cutAsked, "RFC 1034 section 3.6, RFC 2308 section 5"},
}

// TestCut asks a cache with cuts and one without the same questions. Every reply of both must
// be one that the upstream gave to the question within its TTL, or, with cuts, a denial that
// the upstream would have given when it denied a name above, or another type.
func TestCut(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	episodes := (*steps + script.Steps - 1) / script.Steps
	t.Logf("seed %d, %d steps", *seed, episodes*script.Steps)
	seen := make(tally)
	for n := range episodes {
		synctest.Test(t, func(t *testing.T) { playCut(t, *seed, n, seen) })
		if t.Failed() {
			t.Fatalf("seed %d episode %d", *seed, n)
		}
	}
	for _, d := range cutDifferences {
		t.Logf("%6d × %s (%s)", seen[d.name], d.name, d.source)
		if seen[d.name] == 0 && *steps >= 200_000 {
			t.Errorf("%q did not happen: the row is stale, or the world too tame", d.name)
		}
	}
	t.Logf("%d queries, %d upstream without cuts, %d with cuts; %d answers by denials of other questions", seen["queries"], seen["without"], seen["with"], seen["by cut"])
	if seen["by cut"] < seen["queries"]/20 {
		t.Error("denials of other questions answer next to nothing")
	}
}

// side is one of the two caches, with an upstream of its own.
type side struct {
	up    *world
	h     plugin.Handler
	stale time.Duration
	cuts  bool
}

func playCut(t *testing.T, seed uint64, n int, seen tally) {
	r := rand.New(rand.NewPCG(seed, uint64(n)))
	config := cutConfigs[r.IntN(len(cutConfigs))]
	start := time.Now()
	open := func(options string) *side {
		s := &side{up: &world{seed: seed ^ uint64(n)<<20, start: start}}
		c := script.Setup(t, "cache", "cache {\n"+options+"\n}", s.up).(*cache.Cache)
		c.Jitter = func(time.Duration) time.Duration { return 0 }
		if err := c.Open(); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(options, "serve_stale") {
			s.stale = time.Minute
		}
		t.Cleanup(c.Close)
		s.h = c
		return s
	}
	with, without := open(config), open(strings.ReplaceAll(config, "nxdomain", "nxdomain type .\n#nxdomain"))
	with.cuts = true
	var pool []*dns.Msg // the questions of the episode, some often
	for range 60 {
		pool = append(pool, with.up.question(r))
	}
	q := pool[0]
	for range script.Steps {
		switch r.IntN(4) {
		case 0:
			q = with.up.question(r)
		case 1:
			q = pool[r.IntN(1+r.IntN(len(pool)))].Copy()
		default:
			q = with.up.near(r, q)
		}
		seen["queries"]++
		ours, own := with.ask(t, q)
		reference, _ := without.ask(t, q)
		if ours == nil || reference == nil {
			t.Fatalf("no reply to %v", q)
		}
		if !own {
			seen["by cut"]++
		}
		compareCut(ours, reference, own, seen)
		if t.Failed() {
			t.Logf("options %q", config)
			return
		}
		if r.IntN(3) == 0 {
			time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond)
		}
		if r.IntN(100) == 0 {
			time.Sleep(time.Duration(r.IntN(70)) * time.Minute)
		}
	}
	synctest.Wait()
	seen["with"] += len(with.up.calls)
	seen["without"] += len(without.up.calls)
}

// compareCut counts what differs. Both replies are right.
func compareCut(ours, reference *dns.Msg, own bool, seen tally) {
	switch {
	case ours.Rcode == reference.Rcode && len(ours.Answer) == len(reference.Answer):
	case !own:
		seen[cutCame]++
	default:
		seen[cutAsked]++
	}
}

// ask returns the reply to a question, and whether the upstream has given it to the question
// itself.
func (s *side) ask(t *testing.T, q *dns.Msg) (*dns.Msg, bool) {
	w := &lastMessage{}
	if _, err := s.h.ServeDNS(context.Background(), w, q.Copy()); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	if w.got == nil {
		return nil, false
	}
	now := time.Since(s.up.start)
	if s.own(q, w.got, now) {
		return w.got, true
	}
	if s.cuts {
		err := s.denied(q, w.got, now)
		if err == nil {
			return w.got, false
		}
		t.Errorf("%v: %v", now, err)
	}
	t.Errorf("at %v the reply to %s is none that the upstream gave: %v\n%s", now, worldKey(q), w.got, s.history(q))
	return w.got, false
}

type lastMessage struct {
	test.ResponseWriter
	got *dns.Msg
}

func (w *lastMessage) WriteMsg(m *dns.Msg) error {
	w.got = m
	return nil
}

// own reports whether the upstream gave the reply to this question within its TTL, of 5 s at
// least.
func (s *side) own(q, got *dns.Msg, now time.Duration) bool {
	for i := len(s.up.calls) - 1; i >= 0; i-- {
		c := &s.up.calls[i]
		if c.key != worldKey(q) || c.reply.Rcode != got.Rcode || len(c.reply.Answer) != len(got.Answer) || len(c.reply.Ns) != len(got.Ns) {
			continue
		}
		if life := max(lifeOf(c.reply), 5*time.Second) + s.stale; now-c.at < life || c.at == now {
			return true
		}
	}
	return false
}

// lifeOf returns how long a response may be used, as the upstream says.
func lifeOf(m *dns.Msg) time.Duration {
	life := time.Hour
	for _, rr := range append(m.Answer, m.Ns...) {
		life = min(life, time.Duration(rr.Header().Ttl)*time.Second)
		if soa, ok := rr.(*dns.SOA); ok {
			life = min(life, time.Duration(soa.Minttl)*time.Second)
		}
	}
	return life
}

// denied returns an error unless the reply is right for a denial of another question: the
// upstream denied a name above, or another type, not longer ago than it allowed, and would have
// denied the question then.
func (s *side) denied(q, got *dns.Msg, now time.Duration) error {
	name := strings.ToLower(q.Question[0].Name)
	if got.Rcode != dns.RcodeNameError || len(got.Answer) > 0 || len(got.Ns) != 1 || got.AuthenticatedData {
		return fmt.Errorf("it is no plain denial")
	}
	soa, ok := got.Ns[0].(*dns.SOA)
	if !ok || !dns.IsSubDomain(soa.Hdr.Name, name) {
		return fmt.Errorf("it has no SOA record of the zone")
	}
	for i := len(s.up.calls) - 1; i >= 0; i-- {
		c := &s.up.calls[i]
		left := lifeOf(c.reply) - (now - c.at).Truncate(time.Second)
		if c.flags != worldFlags(q) || c.reply.Rcode != dns.RcodeNameError || !dns.IsSubDomain(c.name, name) || left <= 0 {
			continue
		}
		then := s.up.says(q, c.at)
		if then.Rcode == dns.RcodeNameError && len(then.Answer) == 0 && len(then.Ns) == 1 && time.Duration(soa.Hdr.Ttl)*time.Second <= left {
			return nil
		}
	}
	return fmt.Errorf("no denial of a name above, or of another type, makes it right")
}

// history is what the upstream said about the name and those above.
func (s *side) history(q *dns.Msg) string {
	var b strings.Builder
	name := strings.ToLower(q.Question[0].Name)
	for _, c := range s.up.calls {
		if dns.IsSubDomain(c.name, name) {
			fmt.Fprintf(&b, "  %v upstream %s: %s, %v %v\n", c.at, c.key, dns.RcodeToString[c.reply.Rcode], c.reply.Answer, c.reply.Ns)
		}
	}
	return b.String()
}
