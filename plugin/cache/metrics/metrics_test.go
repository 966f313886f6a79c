package metrics

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// metricNames are CoreDNS's, and those of coalescing and of denials.
var metricNames = []string{
	"coredns_cache_coalesced_total", "coredns_cache_cut_probes_total", "coredns_cache_cut_total", "coredns_cache_drops_total", "coredns_cache_entries", "coredns_cache_evictions_total", "coredns_cache_hits_total",
	"coredns_cache_misses_total", "coredns_cache_prefetch_total", "coredns_cache_requests_total", "coredns_cache_search_total", "coredns_cache_served_stale_total",
}

func TestMetricNamesAndLabels(t *testing.T) {
	newCounters("dns://:53", "example.org.", "v")
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "coredns_cache_") {
			continue
		}
		var names []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			names = append(names, l.GetName())
		}
		got[f.GetName()] = strings.Join(names, " ")
	}
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, metricNames) {
		t.Fatalf("metrics %v, want %v", names, metricNames)
	}
	for name, have := range got {
		want := "server view zones"
		if strings.HasSuffix(name, "entries") || strings.HasSuffix(name, "hits_total") || strings.HasSuffix(name, "evictions_total") {
			want = "server type view zones"
		}
		if strings.HasSuffix(name, "cut_total") {
			want = "reason server view zones"
		}
		if have != want {
			t.Errorf("%s has labels %q, want %q", name, have, want)
		}
	}
	problems, err := testutil.GatherAndLint(prometheus.DefaultGatherer, metricNames...)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

func TestCountersAreLookedUpOnce(t *testing.T) {
	var c ByServer
	of := func(server string) *Counters { return c.For(server, ".", "") }
	first := of("dns://:53")
	if of("dns://:53") != first || of("dns://:54") == first {
		t.Error("one set of counters for each server")
	}
	if n := testing.AllocsPerRun(100, func() { of("dns://:53").Hits(1, true) }); n != 0 {
		t.Errorf("counting a hit allocates %v times", n)
	}
}
