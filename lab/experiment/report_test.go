package experiment

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/internal/testgolden"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/load"
)

// keptReport is a steady run as it should be.
func keptReport() *Report {
	return &Report{
		Scenario: Steady, Seed: 1, Pods: 2, RatePerSecond: 2000, TableLimit: 262144,
		Before: Phase{
			Queries: 20000, Answered: 20000,
			LostTo: map[string]int{}, AnsweredBy: map[lab.Responder]int{lab.KubeDNS: 20000},
			Hits: 18000, Misses: 2000,
			EntriesPeak: 20012, EntriesEnd: 20010, DNSEntriesPeak: 20002, DNSEntriesEnd: 20001,
			EntriesPer1000Queries: 1000.1, P50: 325, P99: 14900, UpstreamQueries: 20000, DurationMS: 10004,
		},
		After: Phase{
			Queries: 20000, Answered: 20000,
			LostTo: map[string]int{}, AnsweredBy: map[lab.Responder]int{lab.Trackless: 20000},
			Hits: 18000, Misses: 2000,
			EntriesPeak: 29, EntriesEnd: 28, UpstreamEntriesPeak: 27, UpstreamEntriesEnd: 26,
			EntriesPer1000Queries: 1.35, EntriesAvoidedPeak: 19980, P50: 140, P99: 1200,
			UpstreamQueries: 2550, CacheQueries: 20000, DurationMS: 10003,
		},
	}
}

// keptExhaustion is an exhaustion run as it should be.
func keptExhaustion() *Report {
	return &Report{
		Scenario: Exhaustion, Seed: 1, Pods: 2, RatePerSecond: 2000, TableLimit: 262144, FillerEntries: 262140,
		Before: Phase{
			Queries: 5000, Lost: 5000,
			LostTo: map[string]int{"timeout": 4531, "operation not permitted": 469}, AnsweredBy: map[lab.Responder]int{},
			Hits: 4475, HitsLost: 4475, Misses: 525, MissesLost: 525,
			EntriesPeak: 262144, EntriesEnd: 262144, Drop: 5900, DurationMS: 7500,
		},
		After: Phase{
			Queries: 5000, Answered: 4897, Lost: 103,
			LostTo: map[string]int{"SERVFAIL": 103}, AnsweredBy: map[lab.Responder]int{lab.Trackless: 4897},
			Hits: 4475, Misses: 525, MissesLost: 103,
			EntriesPeak: 262144, EntriesEnd: 262143, UpstreamEntriesPeak: 7, UpstreamEntriesEnd: 7,
			EntriesPer1000Queries: 1.4, EntriesAvoidedPeak: 5000, Drop: 175, P50: 737, P99: 141100,
			UpstreamQueries: 422, CacheQueries: 5000, DurationMS: 2900,
		},
	}
}

func TestReportGolden(t *testing.T) {
	broken := keptReport()
	broken.After.DNSEntriesPeak = 3
	tests := []struct {
		name   string
		report *Report
		colour bool
	}{
		{"steady", keptReport(), false},
		{"exhaustion", keptExhaustion(), false},
		{"broken-in-colour", broken, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.report.judge()
			var table bytes.Buffer
			if err := test.report.WriteTable(&table, test.colour); err != nil {
				t.Fatal(err)
			}
			testgolden.Compare(t, test.name+".txt", table.String())
			encoded, err := json.MarshalIndent(test.report, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			testgolden.Compare(t, test.name+".json", string(encoded)+"\n")
		})
	}
}

// keptSearch is a search as it should be.
func keptSearch() *SearchReport {
	return &SearchReport{
		Scenario: SearchPath, Names: 1000, Pods: 2, SearchDomains: 3, UpstreamDelay: 5000,
		Ways: []Way{
			{Name: "today", Lookups: 1000, Found: 1000, ClientQueries: 8000, UpstreamQueries: 8000, ClientPerName: 8, UpstreamPerName: 8, P50: 23400, P99: 29100, DurationMS: 12000},
			{Name: "cut", Lookups: 1000, Found: 1000, ClientQueries: 8000, UpstreamQueries: 2012, ClientPerName: 8, UpstreamPerName: 2.01, P50: 6900, P99: 9100, DurationMS: 3500},
			{Name: "one_pass", Lookups: 1000, Found: 1000, ClientQueries: 2000, UpstreamQueries: 2011, ClientPerName: 2, UpstreamPerName: 2.01, P50: 6100, P99: 8200, DurationMS: 3100},
		},
	}
}

func TestSearchReportGolden(t *testing.T) {
	report := keptSearch()
	report.judge()
	if !report.Kept {
		t.Error("not kept")
	}
	var table bytes.Buffer
	if err := report.WriteTable(&table, false); err != nil {
		t.Fatal(err)
	}
	testgolden.Compare(t, "search.txt", table.String())
	encoded, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	testgolden.Compare(t, "search.json", string(encoded)+"\n")
}

func TestSearchPromises(t *testing.T) {
	for _, tc := range []struct {
		broken string
		change func(*SearchReport)
	}{
		{"found", func(r *SearchReport) { r.Ways[1].Found-- }},
		{"cut_upstream", func(r *SearchReport) { r.Ways[1].UpstreamPerName = 2.11 }},
		{"one_pass_upstream", func(r *SearchReport) { r.Ways[2].UpstreamPerName = 3 }},
		{"one_pass_client", func(r *SearchReport) { r.Ways[2].ClientQueries++ }},
		{"cut_time", func(r *SearchReport) { r.Ways[1].P50 = 7021 }},
		{"one_pass_time", func(r *SearchReport) { r.Ways[2].P50 = 0 }},
	} {
		r := keptSearch()
		tc.change(r)
		r.judge()
		for _, p := range r.Promises {
			if p.Kept != (p.Name != tc.broken) {
				t.Errorf("%s: %s is kept: %t", tc.broken, p.Name, p.Kept)
			}
		}
		if r.Kept {
			t.Errorf("%s: the report says kept", tc.broken)
		}
	}
}

func TestPromises(t *testing.T) {
	tests := []struct {
		name   string
		report func() *Report
		change func(*Report)
		broken []string
	}{
		{"steady, all kept", keptReport, func(*Report) {}, nil},
		{"a query lost before", keptReport, func(r *Report) { r.Before.Answered--; r.Before.Lost++; r.Before.AnsweredBy[lab.KubeDNS]-- }, []string{"before_answered"}},
		{"a query lost after", keptReport, func(r *Report) { r.After.Answered--; r.After.Lost++; r.After.AnsweredBy[lab.Trackless]-- }, []string{"after_answered"}},
		{"nothing asked", keptReport, func(r *Report) { r.Before, r.After = Phase{}, Phase{} },
			[]string{"before_answered", "before_by_kube_dns", "after_answered", "after_by_trackless"}},
		{"trackless answered before", keptReport, func(r *Report) { r.Before.AnsweredBy[lab.KubeDNS]--; r.Before.AnsweredBy[lab.Trackless]++ },
			[]string{"before_by_kube_dns"}},
		{"kube-dns answered after", keptReport, func(r *Report) { r.After.AnsweredBy[lab.Trackless]--; r.After.AnsweredBy[lab.KubeDNS]++ },
			[]string{"after_by_trackless"}},
		{"kube-dns counted too few", keptReport, func(r *Report) { r.Before.UpstreamQueries = 19999 }, []string{"before_by_kube_dns"}},
		{"trackless counted too few", keptReport, func(r *Report) { r.After.CacheQueries = 19999 }, []string{"after_by_trackless"}},
		{"hardly any entries before", keptReport, func(r *Report) { r.Before.DNSEntriesPeak, r.After.EntriesAvoidedPeak = 9999, 9999 },
			[]string{"before_entries"}},
		{"an entry for a while", keptReport, func(r *Report) { r.After.DNSEntriesPeak = 1 }, []string{"after_entries"}},
		{"an entry at the end", keptReport, func(r *Report) { r.After.DNSEntriesEnd = 1 }, []string{"after_entries"}},
		{"too many avoided", keptReport, func(r *Report) { r.After.EntriesAvoidedPeak = 20403 }, []string{"entries_avoided"}},
		{"too few avoided", keptReport, func(r *Report) { r.After.EntriesAvoidedPeak = 19601 }, []string{"entries_avoided"}},
		{"two percent off", keptReport, func(r *Report) { r.After.EntriesAvoidedPeak = 20402 }, nil},
		{"a long run with a plateau", keptReport, func(r *Report) {
			r.Before.Queries, r.Before.Answered, r.Before.UpstreamQueries = 500000, 500000, 500000
			r.Before.AnsweredBy[lab.KubeDNS], r.Before.DNSEntriesPeak, r.After.EntriesAvoidedPeak = 500000, 60000, 60000
		}, nil},

		{"exhaustion, all kept", keptExhaustion, func(*Report) {}, nil},
		{"table not full before", keptExhaustion, func(r *Report) { r.Before.EntriesPeak = 250000 }, []string{"table_full"}},
		{"table not full after", keptExhaustion, func(r *Report) { r.After.EntriesPeak = 250000 }, []string{"table_full"}},
		{"kube-proxy did not mind", keptExhaustion, func(r *Report) { r.Before.Lost = 0 }, []string{"before_lost"}},
		{"a hit lost", keptExhaustion, func(r *Report) { r.After.HitsLost = 1 }, []string{"after_hits"}},
		{"no hits at all", keptExhaustion, func(r *Report) { r.After.Hits = 0 }, []string{"after_hits"}},
		{"an entry in the full table", keptExhaustion, func(r *Report) { r.After.DNSEntriesPeak = 1 }, []string{"after_entries"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			report := test.report()
			test.change(report)
			report.judge()
			var broken []string
			for _, promise := range report.Promises {
				if !promise.Kept {
					broken = append(broken, promise.Name)
				}
			}
			if diff := cmp.Diff(test.broken, broken); diff != "" {
				t.Errorf("broken promises (-want +got):\n%s", diff)
			}
			if report.Kept != (len(test.broken) == 0) {
				t.Errorf("the report as a whole is kept: %t", report.Kept)
			}
		})
	}
}

func TestPhaseFields(t *testing.T) {
	// What the README and other programs rely on.
	encoded, err := json.Marshal(Report{})
	if err != nil {
		t.Fatal(err)
	}
	var report map[string]json.RawMessage
	if err := json.Unmarshal(encoded, &report); err != nil {
		t.Fatal(err)
	}
	for _, phase := range []string{"before", "after"} {
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(report[phase], &fields); err != nil {
			t.Fatal(err)
		}
		for _, field := range strings.Fields(`queries answered lost entries_peak dns_entries_peak dns_entries_end
			upstream_entries_peak entries_avoided_peak insert_failed drop p50_us p99_us hits_lost`) {
			if _, ok := fields[field]; !ok {
				t.Errorf("%s has no field %s", phase, field)
			}
		}
	}
}

func TestNumbers(t *testing.T) {
	tests := []struct{ name, got, want string }{
		{"small", lab.Grouped(999), "999"},
		{"thousand", lab.Grouped(1000), "1,000"},
		{"million", lab.Grouped(1234567), "1,234,567"},
		{"negative", lab.Grouped(-1000), "-1,000"},
		{"tenths", tenths(1000.04), "1,000.0"},
		{"tenths below one", tenths(0.06), "0.1"},
		{"no time", micros(0), "-"},
		{"microseconds", micros(999), "999 µs"},
		{"milliseconds", micros(14949), "14.9 ms"},
		{"most frequent reason first", load.Losses(map[string]int{"a": 1, "b": 2000, "c": 1}), " (2,000 b, 1 a, 1 c)"},
		{"no reason", load.Losses(nil), ""},
	}
	for _, test := range tests {
		if test.got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, test.got, test.want)
		}
	}
}
