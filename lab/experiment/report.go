package experiment

import (
	"math"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/load"
)

// A Report is what an Experiment found: its JSON form is stable, fields may be
// added but keep their names and meaning.
type Report struct {
	Scenario Scenario `json:"scenario"`
	Seed     uint64   `json:"seed"`
	Pods     int      `json:"pods"`

	// RatePerSecond is how many queries were sent a second.
	RatePerSecond int `json:"rate_per_second"`

	// TableLimit is the number of entries at which the kernel refuses new
	// ones; FillerEntries how many were put into the table beforehand, 0
	// except in the exhaustion scenario.
	TableLimit    int `json:"table_limit"`
	FillerEntries int `json:"filler_entries"`

	// Before is the load through kube-proxy's DNAT to kube-dns, After the same
	// load with trackless serving on the node.
	Before Phase `json:"before"`
	After  Phase `json:"after"`

	// Promises are what was to be shown, Kept is true if all of them held.
	Promises []Promise `json:"promises"`
	Kept     bool      `json:"kept"`
}

// A Phase is one run of the load on a fresh node.
type Phase struct {
	// Queries are first attempts, without retry, of 5 s each. Every one is
	// either Answered or Lost; LostTo says why, AnsweredBy by whom.
	Queries    int                   `json:"queries"`
	Answered   int                   `json:"answered"`
	Lost       int                   `json:"lost"`
	LostTo     map[string]int        `json:"lost_to"`
	AnsweredBy map[lab.Responder]int `json:"answered_by"`

	// Hits are the queries for names that are asked repeatedly, Misses those
	// for names that are asked once and that no cache can hold.
	Hits       int `json:"hits"`
	HitsLost   int `json:"hits_lost"`
	Misses     int `json:"misses"`
	MissesLost int `json:"misses_lost"`

	// Entries of the node's connection tracking table, expired ones not
	// counted: all; with a DNS listen address in either tuple; with the
	// upstream Service's address in either tuple. End is when the load ended.
	EntriesPeak         int `json:"entries_peak"`
	EntriesEnd          int `json:"entries_end"`
	DNSEntriesPeak      int `json:"dns_entries_peak"`
	DNSEntriesEnd       int `json:"dns_entries_end"`
	UpstreamEntriesPeak int `json:"upstream_entries_peak"`
	UpstreamEntriesEnd  int `json:"upstream_entries_end"`

	// EntriesPer1000Queries is the peak of all entries that DNS made (with a
	// listen or an upstream address), for every 1,000 queries, to one decimal.
	EntriesPer1000Queries float64 `json:"entries_per_1000_queries"`

	// EntriesAvoidedPeak is the highest number of entries that trackless said
	// it was avoiding at the time (coredns_notrack_entries_avoided).
	EntriesAvoidedPeak int `json:"entries_avoided_peak"`

	// InsertFailed and Drop count packets that the kernel dropped because it could
	// not insert or make their entry. EarlyDrop counts entries that it evicted to
	// make room.
	InsertFailed uint64 `json:"insert_failed"`
	Drop         uint64 `json:"drop"`
	EarlyDrop    uint64 `json:"early_drop"`

	// Percentiles of the time to the answer, in microseconds.
	P50 int64 `json:"p50_us"`
	P99 int64 `json:"p99_us"`

	// UpstreamQueries are those that kube-dns counted, CacheQueries those that
	// trackless counted.
	UpstreamQueries int `json:"upstream_queries"`
	CacheQueries    int `json:"cache_queries"`

	// DurationMS is how long the load took, in milliseconds.
	DurationMS int64 `json:"duration_ms"`

	// Ended is when the load was over. Course is how the table was meanwhile,
	// Table what was in it at the end, Counters how the kernel's counters grew.
	Ended    time.Time           `json:"ended,omitzero"`
	Course   []lab.TableSample   `json:"course,omitempty"`
	Table    *summary.Summary    `json:"table,omitempty"`
	Counters []conntrack.Counter `json:"counters,omitempty"`
}

// fillLoad takes over what became of the load.
func (p *Phase) fillLoad(result *load.Result) {
	all, hits, misses := result.Figures(), result.Hits(), result.Misses()
	p.Queries, p.Answered, p.Lost = all.Queries, all.Answered, all.Lost
	p.LostTo, p.AnsweredBy = all.LostTo, all.AnsweredBy
	p.Hits, p.HitsLost = hits.Queries, hits.Lost
	p.Misses, p.MissesLost = misses.Queries, misses.Lost
	p.P50, p.P99 = all.P50.Microseconds(), all.P99.Microseconds()
	p.DurationMS = result.Elapsed.Milliseconds()
}

// fillTable takes over what was seen of the table; the queries are known.
func (p *Phase) fillTable(figures lab.TableFigures) {
	p.EntriesPeak, p.EntriesEnd = figures.EntriesPeak, figures.EntriesEnd
	p.DNSEntriesPeak, p.DNSEntriesEnd = figures.DNSEntriesPeak, figures.DNSEntriesEnd
	p.UpstreamEntriesPeak, p.UpstreamEntriesEnd = figures.UpstreamEntriesPeak, figures.UpstreamEntriesEnd
	p.InsertFailed, p.Drop, p.EarlyDrop = figures.Rise.InsertFailed, figures.Rise.Drop, figures.Rise.EarlyDrop
	p.Ended, p.Course, p.Table, p.Counters = time.Now().UTC(), figures.Course, figures.Table, figures.Rise.Counters()
	if p.Queries > 0 {
		made := figures.DNSEntriesPeak + figures.UpstreamEntriesPeak
		p.EntriesPer1000Queries = math.Round(float64(made*10_000)/float64(p.Queries)) / 10
	}
}
