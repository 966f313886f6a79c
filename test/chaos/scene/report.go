package scene

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
)

// A FailureKind says which promise was broken.
type FailureKind string

// The kinds of failures.
const (
	FailLost      FailureKind = "lost"      // queries were lost that should not have been
	FailResponder FailureKind = "responder" // the wrong one answered
	FailEntries   FailureKind = "entries"   // untracked DNS left connection tracking entries
	FailLeftover  FailureKind = "leftover"  // rules, links, addresses or routes differ from before
	FailLapse     FailureKind = "lapse"     // the lease lapsed
	FailClaim     FailureKind = "claim"     // what it says of itself is not true
	FailHeld      FailureKind = "held"      // connections were held for clients that do not read
	FailKilled    FailureKind = "killed"    // the kernel ended trackless for want of memory
	FailRun       FailureKind = "run"       // the case could not be played to its end
)

// A Failure is one broken promise.
type Failure struct {
	Kind FailureKind `json:"kind"`
	Text string      `json:"text"`
}

// A Result is what one case showed. Its JSON form is stable.
type Result struct {
	Name    string `json:"name"`
	Backend string `json:"backend"`
	Fault   string `json:"fault"`
	Bar     string `json:"bar"`

	// Sabotage is what was taken away, "" in an ordinary run.
	Sabotage string `json:"sabotage,omitempty"`

	// Queries are first attempts. Late ones were answered after more than a
	// second.
	Queries int `json:"queries"`
	Lost    int `json:"lost"`
	Late    int `json:"late"`

	// RecoverMS is the longest time from the beginning of a transition to the
	// last query that was lost or late before the next one, in milliseconds.
	RecoverMS int64 `json:"recover_ms"`

	// EntriesLeft are connection tracking entries that should not be there.
	EntriesLeft int `json:"entries_left"`

	Passed   bool           `json:"passed"`
	Skipped  string         `json:"skipped,omitempty"`
	Failures []Failure      `json:"failures,omitempty"`
	Phases   []PhaseResult  `json:"phases"`
	Clients  []ClientResult `json:"clients"`
}

// A PhaseResult is what became of the queries of one phase.
type PhaseResult struct {
	Name       string                `json:"name"`
	Want       lab.Responder         `json:"want,omitempty"`
	DurationMS int64                 `json:"duration_ms"`
	Queries    int                   `json:"queries"`
	Lost       int                   `json:"lost"`
	Late       int                   `json:"late"`
	LostTo     map[string]int        `json:"lost_to,omitempty"`
	AnsweredBy map[lab.Responder]int `json:"answered_by"`
	RecoverMS  int64                 `json:"recover_ms"`
}

// A ClientResult is what became of the queries of one stream.
type ClientResult struct {
	Kind       clients.StreamKind    `json:"kind"`
	From       string                `json:"from"`
	Target     netip.Addr            `json:"target"`
	Queries    int                   `json:"queries"`
	Lost       int                   `json:"lost"`
	AnsweredBy map[lab.Responder]int `json:"answered_by"`
	LostAt     []time.Time           `json:"lost_at,omitempty"`
}

func (c *ClientResult) add(sent *clients.Sent) {
	c.Queries++
	if sent.Loss != "" {
		c.Lost++
		c.LostAt = append(c.LostAt, sent.At)
		return
	}
	c.AnsweredBy[sent.By]++
}

// Fail notes a broken promise.
func (r *Result) Fail(kind FailureKind, format string, args ...any) {
	r.Failures = append(r.Failures, Failure{kind, fmt.Sprintf(format, args...)})
}

// failedBy reports whether a promise of the kind was broken.
func (r *Result) failedBy(kind FailureKind) bool {
	for _, failure := range r.Failures {
		if failure.Kind == kind {
			return true
		}
	}
	return false
}

func (r *Result) addPhase(phase Phase, t *tally) {
	r.Queries += t.sent
	r.Lost += t.lost
	r.Late += t.late
	r.Phases = append(r.Phases, PhaseResult{
		Name: phase.Name, Want: phase.Want, DurationMS: phase.To.Sub(phase.From).Milliseconds(),
		Queries: t.sent, Lost: t.lost, Late: t.late, LostTo: t.lostTo, AnsweredBy: t.answeredBy,
		RecoverMS: t.recovered(phase).Milliseconds(),
	})
}

// verdict is one word for a table.
func (r *Result) verdict() string {
	switch {
	case r.Skipped != "":
		return "skipped"
	case r.Passed:
		return "kept"
	}
	return "BROKEN"
}

func (r *Result) recover() string {
	if r.Lost+r.Late == 0 {
		return "-"
	}
	return (time.Duration(r.RecoverMS) * time.Millisecond).String()
}

const lineFormat = "%-15s %-52s %8s %6s %12s %8s   %-7s  %s\n"

// WriteHead writes the heading of the lines.
func WriteHead(out io.Writer) {
	fmt.Fprintf(out, lineFormat, "BACKEND", "FAULT", "QUERIES", "LOST", "RECOVERED IN", "ENTRIES", "", "BAR")
}

// WriteLine writes the result as one line.
func (r *Result) WriteLine(out io.Writer) {
	if r.Skipped != "" {
		fmt.Fprintf(out, lineFormat, r.Backend, r.Fault, "-", "-", "-", "-", r.verdict(), r.Skipped)
		return
	}
	fmt.Fprintf(out, lineFormat, r.Backend, r.Fault, fmt.Sprint(r.Queries), fmt.Sprint(r.Lost), r.recover(),
		fmt.Sprint(r.EntriesLeft), r.verdict(), r.Bar)
}

// WriteFailures writes why a case failed, a line for each reason.
func (r *Result) WriteFailures(out io.Writer) {
	for _, failure := range r.Failures {
		fmt.Fprintf(out, "    %s: %s\n", failure.Kind, strings.ReplaceAll(failure.Text, "\n", "\n        "))
	}
}

// WriteJSON writes the results as one JSON document.
func WriteJSON(out io.Writer, results []*Result) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(struct {
		Results []*Result `json:"results"`
	}{results})
}

// Markdown is the table of the results as it stands in docs/chaos.md.
func Markdown(results []*Result) string {
	var b strings.Builder
	b.WriteString("| backend | fault | queries | lost | recovered in | entries left | bar |\n")
	b.WriteString("|---|---|--:|--:|--:|--:|---|\n")
	for _, r := range results {
		if r.Skipped != "" {
			fmt.Fprintf(&b, "| %s | %s | - | - | - | - | not run here: %s |\n", r.Backend, r.Fault, r.Skipped)
			continue
		}
		bar := r.Bar
		if !r.Passed {
			bar += " (**not kept**)"
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %d | %s | %d | %s |\n", r.Backend, r.Fault, r.Queries, r.Lost, r.recover(), r.EntriesLeft, bar)
	}
	return b.String()
}

// The markers between which the table stands in the page.
const (
	pageBegin = "<!-- chaos:begin, written by `make test-chaos` -->"
	pageEnd   = "<!-- chaos:end -->"
)

// UpdatePage puts the table between the markers of the file.
func UpdatePage(path string, results []*Result) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	updated, err := replaceBetween(string(text), Markdown(results))
	if err != nil {
		return fmt.Errorf("update %s: %w", path, err)
	}
	return os.WriteFile(path, []byte(updated), 0o644)
}

func replaceBetween(text, table string) (string, error) {
	before, rest, begun := strings.Cut(text, pageBegin)
	_, after, ended := strings.Cut(rest, pageEnd)
	if !begun || !ended {
		return "", errors.New("the table has no place there: put the lines\n" + pageBegin + "\n" + pageEnd + "\nwhere it belongs")
	}
	return before + pageBegin + "\n" + table + pageEnd + after, nil
}
