package compare

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/node/snapshot"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// table makes a snapshot with so many entries of DNS, and others.
func table(at time.Time, dns, other uint64, flows float64) *snapshot.Snapshot {
	s := &snapshot.Snapshot{
		Schema: snapshot.Schema, Time: at, WindowSeconds: 10,
		Node:     snapshot.Node{Name: "worker", BootID: "boot", NetworkNamespace: 1, Kernel: "6.12"},
		Settings: map[string]uint64{"net.netfilter.nf_conntrack_udp_timeout_stream": 120, "net.netfilter.nf_conntrack_max": 100000},
		NewFlows: &snapshot.NewFlows{PerSecond: flows + 100, DNSPerSecond: flows},
		Counters: []snapshot.Counter{{Name: "drop", Total: 10, PerSecond: new(0.0), Loss: true}, {Name: "invalid", Total: 5, PerSecond: new(1.0)}},
		Rules:    &snapshot.Rules{},
	}
	s.Table.Entries, s.Table.Limit, s.Table.Buckets = dns+other, 100000, 100000
	s.Table.FillPercent = float64(dns+other) / 1000
	s.Table.SetSummary(&summary.Summary{
		Entries: dns + other,
		DNS:     summary.DNS{Entries: dns, UDP: dns, Unreplied: dns / 10},
		States:  []summary.StateCount{{Protocol: "udp", State: "ASSURED", Entries: dns}, {Protocol: "tcp", State: "ESTABLISHED", Entries: other}},
	})
	return s
}

// trackless puts an instance into a snapshot, attached for so long.
func trackless(s *snapshot.Snapshot, attached time.Duration, avoided uint64, flows float64) *snapshot.Snapshot {
	s.Rules.Instances = []snapshot.Instance{{Table: "trackless-1", State: "attached", Since: s.Time.Add(-attached)}}
	s.Ledger = &snapshot.Ledger{Instances: 1, EntriesAvoided: avoided, FlowsPerSecond: &flows}
	return s
}

// TestSearchFigures: a comparison says what share the search path has, and what it did not cost.
func TestSearchFigures(t *testing.T) {
	before, after := table(noon, 0, 0, 0), table(noon.Add(time.Hour), 0, 0, 0)
	after.Search = &snapshot.Search{SearchPercent: new(75.0), SavedPerSecond: new(600.0)}
	c := Snapshots(before, after)
	for id, want := range map[string]float64{"search_percent": 75, "search_saved_per_second": 600} {
		if f := c.Figure(id); f == nil || f.Before != nil || f.After == nil || *f.After != want {
			t.Errorf("%s is %+v, want %v after", id, f, want)
		}
	}
}

func TestVerdict(t *testing.T) {
	type change func(before, after *snapshot.Snapshot)
	for _, tc := range []struct {
		name     string
		change   change
		outcome  Outcome
		says     []string
		silent   string // what the sentence must not say
		warnings []string
	}{
		{"as it should be", func(_, _ *snapshot.Snapshot) {}, Improved,
			[]string{"With Trackless, DNS holds 200 conntrack entries instead of 20,000 (99.0 % fewer)", "at a like load (500 and 502 DNS flows a second)", "keeps 19,500 out", "5.2 % full instead of 25.0 %"}, "lost", nil},
		{"nearly all gone", func(_, a *snapshot.Snapshot) { a.Table.Summary.DNS.Entries = 1 }, Improved, []string{"99.9 % fewer"}, "100", nil},
		{"all gone", func(_, a *snapshot.Snapshot) { a.Table.Summary.DNS.Entries = 0 }, Improved, []string{"holds 0 conntrack entries", "100.0 % fewer"}, "99", nil},
		{"losses end", func(b, _ *snapshot.Snapshot) { b.Counters[0].PerSecond = new(12.5) }, Improved, []string{"The table lost 12.5 packets a second before, and none after."}, "", nil},
		{"losses begin", func(_, a *snapshot.Snapshot) { a.Counters[0].PerSecond = new(2.0) }, Improved, []string{"loses 2 packets a second, and lost none before"}, "", nil},
		{"the other way round", func(b, a *snapshot.Snapshot) {
			*b, *a = *a, *b
			b.Time, a.Time = a.Time, b.Time
		}, Worse, []string{"DNS holds 20,000 conntrack entries instead of 200"}, "With Trackless", []string{"attached-before"}},
		{"no change", func(_, a *snapshot.Snapshot) { a.Table.SetSummary(table(noon, 19800, 5000, 0).Table.Summary) }, Unchanged, []string{"No notable change"}, "With Trackless", nil},
		{"without Trackless", func(_, a *snapshot.Snapshot) {
			a.Rules.Instances, a.Ledger = nil, nil
			a.NewFlows.DNSPerSecond = 490
		}, Improved, []string{"attached in neither, so this is not its doing"}, "With Trackless", []string{"not-attached"}},
		{"half the load and half the entries", func(_, a *snapshot.Snapshot) {
			a.Table.SetSummary(table(noon, 10000, 5000, 0).Table.Summary)
			a.Ledger.FlowsPerSecond = new(248.0)
		}, Unclear, []string{"the load changed from 500 to 252"}, "With Trackless", []string{"different-load"}},
		{"half the load and hardly any entries", func(_, a *snapshot.Snapshot) { a.Ledger.FlowsPerSecond = new(248.0) }, Improved,
			[]string{"99.0 % fewer", "0.79 instead of 40 for each DNS flow a second"}, "like load", []string{"different-load"}},
		{"no load after", func(_, a *snapshot.Snapshot) { a.NewFlows.DNSPerSecond, a.Ledger.FlowsPerSecond = 0, new(0.0) }, Unclear, []string{"Nothing can be concluded", "the load differs"}, "", []string{"different-load"}},
		{"no load at all", func(b, a *snapshot.Snapshot) {
			b.NewFlows.DNSPerSecond, a.NewFlows.DNSPerSecond, a.Ledger.FlowsPerSecond = 0, 0, new(0.0)
		}, Unclear, []string{"left from earlier"}, "", []string{"no-load"}},
		{"load unknown, but the ledger knows", func(b, _ *snapshot.Snapshot) { b.NewFlows = nil }, Improved, []string{"keeps 19,500 out"}, "like load", []string{"unknown-load"}},
		{"load unknown", func(b, a *snapshot.Snapshot) { b.NewFlows, a.Ledger, a.Rules = nil, nil, nil }, Unclear, []string{"not known on both sides"}, "", []string{"unknown-load", "not-attached"}},
		{"another cache hides the load", func(b, a *snapshot.Snapshot) {
			b.Listeners = []snapshot.Listener{{QueriesUntracked: new(true)}}
			a.Ledger = nil
		}, Unclear, []string{"not known on both sides"}, "", []string{"unknown-load"}},
		{"too short", func(b, _ *snapshot.Snapshot) { b.WindowSeconds = 1 }, Unclear, []string{"the first watched for 1.0 s only", "DNS held 20,000 entries in the first and 200 in the second"}, "", []string{"short-window"}},
		{"read once", func(b, a *snapshot.Snapshot) {
			for _, s := range []*snapshot.Snapshot{b, a} {
				s.WindowSeconds, s.NewFlows = 0, nil
				s.Counters = nil
			}
			a.Ledger.FlowsPerSecond = nil
		}, Improved, []string{"99.0 % fewer"}, "load", []string{"no-window", "no-window", "unknown-load"}},
		{"events lost", func(b, _ *snapshot.Snapshot) { b.NewFlows.Lost = true }, Improved, nil, "", []string{"events-lost"}},
		{"another node", func(_, a *snapshot.Snapshot) { a.Node = snapshot.Node{Name: "other", BootID: "else", Kernel: "6.12"} }, Unclear, []string{"of different nodes, worker and other"}, "", []string{"different-node"}},
		{"another name of the same node", func(_, a *snapshot.Snapshot) { a.Node.Name = "worker.example.com" }, Improved, nil, "", nil},
		{"another namespace", func(_, a *snapshot.Snapshot) { a.Node.NetworkNamespace = 2 }, Unclear, []string{"different network namespaces"}, "", []string{"different-namespace"}},
		{"after a restart", func(_, a *snapshot.Snapshot) { a.Node.BootID = "later" }, Improved, nil, "", []string{"rebooted"}},
		{"after an update of the kernel", func(_, a *snapshot.Snapshot) { a.Node.BootID, a.Node.Kernel = "later", "6.18" }, Improved, nil, "", []string{"rebooted", "different-kernel"}},
		{"another limit", func(_, a *snapshot.Snapshot) { a.Table.Limit = 200000 }, Improved, nil, "full instead", []string{"different-limits"}},
		{"other timeouts of UDP", func(_, a *snapshot.Snapshot) { a.Settings["net.netfilter.nf_conntrack_udp_timeout_stream"] = 60 }, Unclear, []string{"live for different times: udp_timeout_stream (120 s and 60 s)"}, "", []string{"different-udp-timeouts"}},
		{"attached just now", func(_, a *snapshot.Snapshot) {
			a.Rules.Instances[0].Since = a.Time.Add(-20 * time.Second)
			a.Table.SetSummary(table(noon, 19000, 5000, 0).Table.Summary)
		}, Unclear, []string{"take the second again in a few minutes"}, "", []string{"settling"}},
		{"files swapped", func(b, a *snapshot.Snapshot) { b.Time, a.Time = a.Time, b.Time }, Unclear, []string{"taken 24 hours before the first, as if the files were swapped"}, "", []string{"order"}},
		{"one file twice", func(b, a *snapshot.Snapshot) { *a = *b }, Unclear, []string{"one snapshot was given twice"}, "", []string{"same-time", "not-attached"}},
		{"hardly any DNS", func(b, a *snapshot.Snapshot) {
			b.Table.Summary.DNS.Entries, a.Ledger.EntriesAvoided, a.Table.Summary.DNS.Entries = 60, 30, 0
		}, Unclear, []string{"chance decides"}, "", []string{"little-dns"}},
		{"entries not read", func(b, _ *snapshot.Snapshot) {
			b.Table.Summary = nil
			b.Missing = []string{"entries: operation not permitted"}
		}, Unclear, []string{"CAP_NET_ADMIN"}, "For what it is worth", []string{"no-entries", "missing"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := table(noon.Add(-24*time.Hour), 20000, 5000, 500)
			after := trackless(table(noon, 200, 5000, 4), time.Hour, 19500, 498)
			tc.change(before, after)
			c := Snapshots(before, after)
			if c.Verdict.Outcome != tc.outcome {
				t.Errorf("outcome %s, want %s", c.Verdict.Outcome, tc.outcome)
			}
			for _, says := range tc.says {
				if !strings.Contains(c.Verdict.Sentence, says) {
					t.Errorf("it does not say %q:\n%s", says, c.Verdict.Sentence)
				}
			}
			if tc.silent != "" && strings.Contains(c.Verdict.Sentence, tc.silent) {
				t.Errorf("it says %q:\n%s", tc.silent, c.Verdict.Sentence)
			}
			var ids []string
			for _, w := range c.Warnings {
				ids = append(ids, w.ID)
			}
			if !slices.Equal(slices.Sorted(slices.Values(ids)), slices.Sorted(slices.Values(tc.warnings))) {
				t.Errorf("warnings %v, want %v", ids, tc.warnings)
			}
			var b bytes.Buffer
			if err := c.WriteTable(&b, func(_, text string) string { return text }); err != nil || !strings.Contains(b.String(), strings.ToUpper(string(tc.outcome))) {
				t.Errorf("error %v in\n%s", err, b.String())
			}
			// Each is said once: in the sentence, or as a warning.
			text := strings.Join(strings.Fields(b.String()), " ")
			for _, w := range c.Warnings {
				if n := strings.Count(text, w.Text); n != 1 {
					t.Errorf("%q is said %d times in\n%s", w.Text, n, b.String())
				}
			}
		})
	}
}

func TestFiguresAndCounters(t *testing.T) {
	before := table(noon.Add(-time.Hour), 20000, 5000, 500)
	after := trackless(table(noon, 200, 5000, 4), time.Hour, 19500, 498)
	after.Counters[0].Total = 25
	after.Settings["net.netfilter.nf_conntrack_max"] = 7
	c := Snapshots(before, after)
	for id, want := range map[string][2]float64{
		"entries": {25000, 5200}, "dns_entries": {20000, 200}, "dns_percent": {80, 100 * 200.0 / 5200}, "dns_load_per_second": {500, 502},
	} {
		f := c.Figure(id)
		if f == nil || *f.Before != want[0] || *f.After != want[1] || *f.Difference != want[1]-want[0] || *f.Ratio != want[1]/want[0] {
			t.Errorf("%s: %+v, want %v", id, f, want)
		}
	}
	if f := c.Figure("entries_avoided"); f.Before != nil || *f.After != 19500 || f.Difference != nil || f.Ratio != nil {
		t.Errorf("entries_avoided: %+v", f)
	}
	if k := c.Counters[0]; k.Name != "drop" || k.Between == nil || *k.Between != 15 {
		t.Errorf("drop: %+v", k)
	}
	if s := c.Settings; len(s) != 1 || *s[0].Before != 100000 || *s[0].After != 7 {
		t.Errorf("settings %+v", s)
	}
	if len(c.States) != 2 || c.States[0] != (State{"udp", "ASSURED", 20000, 200}) {
		t.Errorf("states %+v", c.States)
	}
	if d := c.Before.DNS; *d != (Share{Answered: 18000, Unanswered: 2000, Other: 5000}) || d.Total() != 25000 {
		t.Errorf("share %+v", d)
	}

	after.Node.BootID = "later"
	if k := Snapshots(before, after).Counters[0]; k.Between != nil {
		t.Errorf("after a restart drop rose by %d", *k.Between)
	}
}

// A limit of 0 is none: it is not compared as a number, nor is the table 0 % full.
func TestWithoutLimit(t *testing.T) {
	before, after := table(noon.Add(-time.Hour), 20000, 5000, 500), table(noon, 20000, 5000, 500)
	after.Table.Limit, after.Table.FillPercent = 0, 0
	c := Snapshots(before, after)
	if f := c.Figure("limit"); f.Text(f.Before) != "100,000" || f.Text(f.After) != NoLimit || f.Difference != nil || f.Ratio != nil {
		t.Errorf("limit: %+v", f)
	}
	if f := c.Figure("fill_percent"); f.After != nil {
		t.Errorf("fill_percent: %+v", f)
	}
	var b strings.Builder
	if err := c.WriteTable(&b, func(_, text string) string { return text }); err != nil || strings.Count(b.String(), NoLimit) != 2 { // the figure and the warning
		t.Errorf("%v\n%s", err, b.String())
	}
}

// The kernel counts a failed insertion as drop, too.
func TestLossesCountOnce(t *testing.T) {
	s := table(noon, 1, 1, 1)
	s.Counters = []snapshot.Counter{
		{Name: "drop", Loss: true, PerSecond: new(5.0)}, {Name: "insert_failed", Loss: true, PerSecond: new(3.0)},
		{Name: "early_drop", Loss: true, PerSecond: new(1.0)}, {Name: "invalid", PerSecond: new(9.0)},
	}
	if n := lost(s); n == nil || *n != 6 {
		t.Errorf("lost %v", n)
	}
}

func TestShareOfReversedEntries(t *testing.T) {
	s := share(&summary.Summary{Entries: 100, DNS: summary.DNS{Entries: 40, Unreplied: 25, Reversed: 20}})
	if *s != (Share{Answered: 15, Unanswered: 5, Reversed: 20, Other: 60}) {
		t.Errorf("%+v", s)
	}
}

func TestFormat(t *testing.T) {
	for _, tc := range []struct {
		unit Unit
		n    float64
		want string
	}{
		{Entries, 0, "0"}, {Entries, 999, "999"}, {Entries, 1234567, "1,234,567"}, {Entries, -23410, "−23,410"},
		{Percent, 4.24, "4.2 %"}, {Bytes, 512, "512 bytes"}, {Bytes, 1536, "1.5 KiB"}, {Bytes, -2 << 20, "−2.0 MiB"}, {Bytes, 3 << 30, "3.0 GiB"},
		{PerSecond, 12.34, "12.3"}, {PerSecond, 12, "12"}, {PerSecond, 512.25, "512"}, {PerSecond, -0.04, "0.0"},
		{Microseconds, 325, "325 µs"}, {Microseconds, 14900, "14.9 ms"},
	} {
		if got := Format(tc.unit, &tc.n); got != tc.want {
			t.Errorf("%v %s is %q, want %q", tc.n, tc.unit, got, tc.want)
		}
	}
	for _, tc := range []struct{ got, want string }{
		{Format(Entries, nil), "–"}, {FormatRatio(nil), "–"}, {FormatDifference(Entries, nil), "–"},
		{FormatRatio(new(0.0)), "× 0"}, {FormatRatio(new(0.0123)), "× 0.012"}, {FormatRatio(new(1.5)), "× 1.50"},
		{FormatRatio(new(2.0 / 5998)), "× 0.0003"}, {FormatRatio(new(1.0 / 262144)), "< 0.0001"}, {FormatRatio(new(5998.0)), "× 5,998"}, {FormatRatio(new(99.5)), "× 99.50"},
		{FormatDifference(Entries, new(5.0)), "+5"}, {FormatDifference(Percent, new(-5.0)), "−5.0 points"}, {FormatDifference(Entries, new(0.0)), "0"},
	} {
		if tc.got != tc.want {
			t.Errorf("%q, want %q", tc.got, tc.want)
		}
	}
}
