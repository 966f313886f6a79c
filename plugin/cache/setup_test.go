package cache

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"

	"github.com/trackless-dns/trackless/internal/testgolden"
	"github.com/trackless-dns/trackless/plugin/cache/cut"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// settings has the settings of a Corefile.
type settings struct {
	zones                []string
	pcap, ncap           int
	pttl, minpttl        time.Duration
	nttl, minnttl        time.Duration
	failttl              time.Duration
	size                 int
	coalesce             bool
	prefetch             int
	duration             time.Duration
	percentage           int
	staleUpTo            time.Duration
	verify               bool
	verifyTimeout        time.Duration
	staleTTL, recheck    time.Duration
	preferPositive, keep bool
	pexcept, nexcept     []string
}

func settingsOf(c *Cache) settings {
	return settings{c.Zones, c.pcap, c.ncap, c.pttl, c.minpttl, c.nttl, c.minnttl, c.failttl, c.size, c.coalesce, c.prefetch, c.duration, c.percentage,
		c.staleUpTo, c.verifyStale, c.verifyTimeout, c.staleTTL, c.staleRecheck, c.preferPositive, c.keepttl, c.pexcept, c.nexcept}
}

// defaults are CoreDNS 1.15.0's.
func defaults() settings {
	return settings{zones: []string{"example.net."}, pcap: 10000, ncap: 10000, pttl: time.Hour, minpttl: 5 * time.Second, nttl: 30 * time.Minute, minnttl: 5 * time.Second,
		failttl: 5 * time.Second, coalesce: true, duration: time.Minute, percentage: 10}
}

func TestParse(t *testing.T) {
	const s, m, h = time.Second, time.Minute, time.Hour
	block := func(lines ...string) string { return "cache {\n" + strings.Join(lines, "\n") + "\n}" }
	for _, tc := range []struct {
		input string
		want  func(*settings)
	}{
		{"cache", func(*settings) {}},
		{"cache 30", func(w *settings) { w.pttl, w.nttl = 30*s, 30*s }},
		{"cache example.org", func(w *settings) { w.zones = []string{"example.org."} }},
		{"cache 30 Example.org b.example.org", func(w *settings) {
			w.pttl, w.nttl, w.zones = 30*s, 30*s, []string{"example.org.", "b.example.org."}
		}},
		{block("success 5000"), func(w *settings) { w.pcap = 5000 }},
		{block("success 5000 60"), func(w *settings) { w.pcap, w.pttl = 5000, m }},
		{block("success 5000 60 10"), func(w *settings) { w.pcap, w.pttl, w.minpttl = 5000, m, 10*s }},
		{block("denial 5000 60 0"), func(w *settings) { w.ncap, w.nttl, w.minnttl = 5000, m, 0 }},
		{"cache 25 {\ndenial 10 15\n}", func(w *settings) { w.pttl, w.ncap, w.nttl = 25*s, 10, 15*s }},
		{block("prefetch 10"), func(w *settings) { w.prefetch = 10 }},
		{block("prefetch 10 5m 25%"), func(w *settings) { w.prefetch, w.duration, w.percentage = 10, 5*m, 25 }},
		{block("serve_stale"), func(w *settings) { w.staleUpTo = h }},
		{block("serve_stale 20m"), func(w *settings) { w.staleUpTo = 20 * m }},
		{block("serve_stale 0"), func(*settings) {}},
		{block("serve_stale 1h immediate"), func(w *settings) { w.staleUpTo = h }},
		{block("serve_stale 1h IMMEDIATE 30s"), func(w *settings) { w.staleUpTo, w.staleTTL = h, 30*s }},
		{block("serve_stale 1h immediate 30s 1m"), func(w *settings) { w.staleUpTo, w.staleTTL, w.recheck = h, 30*s, m }},
		{block("serve_stale 1h immediate 4294967295s"), func(w *settings) { w.staleUpTo, w.staleTTL = h, 4294967295*s }},
		{block("serve_stale 1h verify"), func(w *settings) { w.staleUpTo, w.verify = h, true }},
		{block("serve_stale 1h verify 100ms"), func(w *settings) { w.staleUpTo, w.verify, w.verifyTimeout = h, true, s/10 }},
		{block("serve_stale 1h verify 0 30s 5m"), func(w *settings) { w.staleUpTo, w.verify, w.staleTTL, w.recheck = h, true, 30*s, 5*m }},
		{block("serve_stale 1m verify 1s 2s 3s", "serve_stale"), func(w *settings) { w.staleUpTo = h }},
		{block("serve_stale_policy PREFER_positive", "serve_stale"), func(w *settings) { w.staleUpTo, w.preferPositive = h, true }},
		{block("servfail 1m"), func(w *settings) { w.failttl = m }},
		{block("servfail 0"), func(w *settings) { w.failttl = 0 }},
		{block("servfail 5m"), func(w *settings) { w.failttl = 5 * m }},
		{block("disable denial"), func(w *settings) { w.nexcept = []string{"."} }},
		{block("disable success Example.org b.example.org"), func(w *settings) { w.pexcept = []string{"example.org.", "b.example.org."} }},
		{block("keepttl"), func(w *settings) { w.keep = true }},
		{block("coalesce"), func(*settings) {}},
		{block("coalesce on"), func(*settings) {}},
		{block("coalesce off"), func(w *settings) { w.coalesce = false }},
		{block("size 1048576"), func(w *settings) { w.size, w.pcap, w.ncap = 1<<20, noCap, noCap }},
		{block("size 16Mi", "success 5000"), func(w *settings) { w.size, w.pcap, w.ncap = 16<<20, 5000, noCap }},
		{block("denial 5000", "size 2M"), func(w *settings) { w.size, w.pcap, w.ncap = 2e6, noCap, 5000 }},
	} {
		t.Run(tc.input, func(t *testing.T) {
			d := caddy.NewTestController("dns", tc.input)
			d.ServerBlockKeys = []string{"example.net"}
			c, err := parse(d)
			if err != nil {
				t.Fatal(err)
			}
			want := defaults()
			tc.want(&want)
			if got := settingsOf(c); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	inputs := []string{"cache 0", "cache -1", "cache 10\ncache 20"}
	for _, line := range []string{
		"positive 10", "disable all", "size 10Pi", "success", "success many", "success 10 0", "success 10 -1", "success 10 soon", "success 10 10 -1", "success 10 10 soon",
		"denial", "denial 10 0", "denial 10 10 -1",
		"prefetch", "prefetch often", "prefetch -1", "prefetch 1 soon", "prefetch 1 1m 20", "prefetch 1 1m x%", "prefetch 1 1m 9%", "prefetch 1 1m 91%", "prefetch 1 1m 20% more",
		"serve_stale 20", "serve_stale -20m", "serve_stale aa", "serve_stale 1m nono", "serve_stale 0 after nono",
		"serve_stale 1h immediate 100ms", "serve_stale 1h immediate 4294967296s", "serve_stale 1h immediate -1s", "serve_stale 1h immediate garbage",
		"serve_stale 1h immediate 30s extra", "serve_stale 1h immediate 30s 30s extra", "serve_stale 1h immediate 30s 5m1s", "serve_stale 1h immediate 30s -1s",
		"serve_stale 1h verify -1ms", "serve_stale 1h verify garbage", "serve_stale 1h verify 100ms 500ms", "serve_stale 1h verify 100ms -1s",
		"serve_stale 1h verify 100ms 30s extra", "serve_stale 1h verify 100ms 30s 30s extra",
		"serve_stale_policy prefer_positive", "serve_stale\nserve_stale_policy", "serve_stale\nserve_stale_policy invalid", "serve_stale\nserve_stale_policy prefer_positive extra",
		"serve_stale\nserve_stale_policy prefer_positive\nserve_stale_policy prefer_positive",
		"servfail", "servfail 6m", "servfail 20", "servfail -1s", "servfail 1m invalid",
		"disable", "disable invalid example.org", "keepttl 1",
		"size", "size many", "size 1", "size -1Mi", "size 1Mi more", "size 99999999999999999999", "size 9999999Gi",
		"coalesce maybe", "coalesce on off",
		"nxdomain", "nxdomain maybe", "nxdomain learn", "nxdomain cut a..b",
	} {
		inputs = append(inputs, "cache {\n"+line+"\n}")
	}
	var got strings.Builder
	for _, input := range inputs {
		_, err := parse(caddy.NewTestController("dns", input))
		if err == nil {
			t.Fatalf("%q: accepted", input)
		}
		fmt.Fprintf(&got, "%q\n\t%v\n", input, err)
	}
	testgolden.Compare(t, "parse_errors.txt", got.String())
}

// TestParseLevels: the last line for a zone counts, and nothing is learned by default.
func TestParseLevels(t *testing.T) {
	for _, tc := range []struct {
		lines string
		want  map[string]cut.Level
	}{
		{"", map[string]cut.Level{"a.example.org.": cut.BelowToo}},
		{"nxdomain type", map[string]cut.Level{"a.example.org.": cut.PerType}},
		{"nxdomain name", map[string]cut.Level{"a.example.org.": cut.PerName}},
		{"nxdomain type\nnxdomain learn cluster.local Example.org", map[string]cut.Level{"a.example.org.": cut.Learn, "a.cluster.local.": cut.Learn, "local.": cut.PerType}},
		{"nxdomain type example.org\nnxdomain cut example.org", map[string]cut.Level{"a.example.org.": cut.BelowToo, "a.example.net.": cut.BelowToo}},
	} {
		c, err := parse(caddy.NewTestController("dns", "cache {\n"+tc.lines+"\n}"))
		if err != nil {
			t.Fatalf("%q: %v", tc.lines, err)
		}
		for text, want := range tc.want {
			name, err := wire.AppendName(nil, text)
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := c.levels.Of(name); got != want {
				t.Errorf("%q: %s has level %d, want %d", tc.lines, text, got, want)
			}
		}
	}
}

func TestCapacity(t *testing.T) {
	for in, want := range map[int]int{noCap: 0, 0: 1024, 10: 1024, 1024: 1024, 5000: 4864, 9984: 9984, 10000: 9984} {
		if got := capacity(in); got != want {
			t.Errorf("capacity(%d) = %d, want %d", in, got, want)
		}
	}
}
