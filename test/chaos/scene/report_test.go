package scene

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var sampleResults = []*Result{
	{Name: "a", Backend: "nftables", Fault: "SIGKILL", Bar: "at most 100 ms", Queries: 4000, Lost: 12, RecoverMS: 31, Passed: true},
	{Name: "b", Backend: "nftables", Fault: "`nft flush ruleset`", Bar: "0 lost", Queries: 3000, Passed: true},
	{Name: "c", Backend: "nftables", Fault: "OOM", Bar: "at most 1.5 s", Skipped: "no cgroups"},
	{Name: "d", Backend: "iptables nft", Fault: "start", Bar: "0 lost", Queries: 10, Lost: 1, RecoverMS: 5, EntriesLeft: 2,
		Failures: []Failure{{FailLost, "started: 1 of 10\nlost"}}},
}

const sampleTable = "| backend | fault | queries | lost | recovered in | entries left | bar |\n" +
	"|---|---|--:|--:|--:|--:|---|\n" +
	"| nftables | SIGKILL | 4000 | 12 | 31ms | 0 | at most 100 ms |\n" +
	"| nftables | `nft flush ruleset` | 3000 | 0 | - | 0 | 0 lost |\n" +
	"| nftables | OOM | - | - | - | - | not run here: no cgroups |\n" +
	"| iptables nft | start | 10 | 1 | 5ms | 2 | 0 lost (**not kept**) |\n"

func TestMarkdown(t *testing.T) {
	if got := Markdown(sampleResults); got != sampleTable {
		t.Errorf("got\n%s\nwant\n%s", got, sampleTable)
	}
}

func TestUpdatePage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "chaos.md")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# Before\n")
	if err := UpdatePage(path, sampleResults); err == nil || !strings.Contains(err.Error(), pageBegin) {
		t.Errorf("a page without a place for the table: %v; want an error that names the markers", err)
	}
	write("# Before\n" + pageBegin + "\nold\n" + pageEnd + "\n# After\n")
	for range 2 { // the second time changes nothing
		if err := UpdatePage(path, sampleResults); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if want := "# Before\n" + pageBegin + "\n" + sampleTable + pageEnd + "\n# After\n"; string(got) != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
}

// The page has a place for the table, so that a matrix of a quarter of an hour
// does not end in an error.
func TestPageHasPlace(t *testing.T) {
	text, err := os.ReadFile("../../../docs/chaos.md")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := replaceBetween(string(text), sampleTable); err != nil {
		t.Errorf("docs/chaos.md: %v", err)
	}
}

func TestLines(t *testing.T) {
	var b strings.Builder
	for _, result := range sampleResults {
		result.WriteLine(&b)
	}
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(lines) != len(sampleResults) {
		t.Fatalf("%d lines for %d results:\n%s", len(lines), len(sampleResults), b.String())
	}
	for i, verdict := range []string{"kept", "kept", "skipped", "BROKEN"} {
		if !strings.Contains(lines[i], " "+verdict+" ") {
			t.Errorf("line %q does not say %q", lines[i], verdict)
		}
	}
}

func TestWriteJSON(t *testing.T) {
	var b strings.Builder
	if err := WriteJSON(&b, sampleResults); err != nil {
		t.Fatal(err)
	}
	var back struct {
		Results []map[string]any `json:"results"`
	}
	if err := json.Unmarshal([]byte(b.String()), &back); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"name", "fault", "bar", "queries", "lost", "late", "recover_ms", "entries_left", "passed", "phases", "clients"} {
		if _, ok := back.Results[0][field]; !ok {
			t.Errorf("the result has no field %q", field)
		}
	}
}
