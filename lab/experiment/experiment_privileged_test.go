//go:build privileged

package experiment_test

import (
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/experiment"
	"github.com/trackless-dns/trackless/lab/labtest"
	"github.com/trackless-dns/trackless/lab/load"
)

func runExperiment(t *testing.T, e experiment.Experiment) *experiment.Report {
	t.Helper()
	labtest.Require(t)
	e.Node.Program = labtest.Program(t)
	e.Node.WithoutIPv6 = !lab.HasIPv6()
	steps := make(map[string]bool)
	e.Progress = func(p experiment.Progress) { steps[p.Phase+": "+p.Step] = true }
	report, err := e.Run(t.Context())
	for attempt := 1; err == nil && !report.Kept && attempt < 3; attempt++ { // a starved machine keeps no promise
		report, err = e.Run(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	if err := report.WriteTable(&table, false); err != nil {
		t.Error(err)
	}
	t.Logf("\n%s", table.String())
	for _, promise := range report.Promises {
		if !promise.Kept {
			t.Errorf("%s: %s: %s", promise.Name, promise.Text, promise.Found)
		}
	}
	if report.Kept != !t.Failed() {
		t.Errorf("kept is %t", report.Kept)
	}
	for _, step := range []string{"before: sending queries", "after: starting trackless", "after: sending queries"} {
		if !steps[step] {
			t.Errorf("no progress was reported for %q, only for %v", step, steps)
		}
	}
	return report
}

func TestSteady(t *testing.T) {
	const queries = 2000
	report := runExperiment(t, experiment.Experiment{Load: load.Load{Queries: queries}})
	if got := report.Before.DNSEntriesPeak; got != queries {
		t.Errorf("%d entries for %d queries, each from a port of its own", got, queries)
	}
	if got := report.Before.UpstreamQueries; got != queries {
		t.Errorf("kube-dns counted %d queries before, want %d", got, queries)
	}
	// A cache that asks for everything would be none; one that asks for
	// nothing cannot have answered.
	if got := report.After.UpstreamQueries; got < report.After.Misses || got > queries/2 {
		t.Errorf("kube-dns counted %d queries after, with %d misses of %d", got, report.After.Misses, queries)
	}
	if report.After.UpstreamEntriesPeak == 0 {
		t.Error("no entry to the upstream was seen, though there were upstream queries")
	}
}

func TestExhaustion(t *testing.T) {
	if testing.Short() {
		t.Skip("fills two tables to the limit: some ten seconds")
	}
	report := runExperiment(t, experiment.Experiment{Scenario: experiment.Exhaustion, Load: load.Load{Queries: 1000}})
	if report.Before.Drop == 0 {
		t.Error("queries were lost, but the kernel counted no drop")
	}
	if report.FillerEntries == 0 || report.FillerEntries > report.TableLimit {
		t.Errorf("%d filler entries in a table of %d", report.FillerEntries, report.TableLimit)
	}
}

// countsBroken are the promises that are not kept, but for those of times: these are for an
// idle machine.
func countsBroken(r *experiment.SearchReport) (broken []experiment.Promise) {
	for _, p := range r.Promises {
		if !p.Kept && !strings.HasSuffix(p.Name, "_time") {
			broken = append(broken, p)
		}
	}
	return broken
}

func TestSearch(t *testing.T) {
	labtest.Require(t)
	const names = 400
	search := experiment.Search{Names: names, Node: lab.Options{Program: labtest.Program(t), WithoutIPv6: !lab.HasIPv6()}}
	steps := make(map[string]bool)
	search.Progress = func(p experiment.Progress) { steps[p.Phase+": "+p.Step] = true }
	report, err := search.Run(t.Context())
	for attempt := 1; err == nil && len(countsBroken(report)) > 0 && attempt < 3; attempt++ { // on a starved machine leases lapse
		report, err = search.Run(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	if err := report.WriteTable(&table, false); err != nil {
		t.Error(err)
	}
	t.Logf("\n%s", table.String())
	for _, p := range countsBroken(report) {
		t.Errorf("not kept: %s: %s", p.Text, p.Found)
	}
	if today := report.Ways[0]; today.ClientQueries != 8*names || today.UpstreamQueries != 8*names {
		t.Errorf("today: %+v", today)
	}
	for _, step := range []string{"node: building a node", "cut: starting trackless", "one_pass: looking names up"} {
		if !steps[step] {
			t.Errorf("no progress was reported for %q, only for %v", step, steps)
		}
	}
}
