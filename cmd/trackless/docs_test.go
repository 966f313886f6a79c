package main

import (
	"os"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/conntrack/advice"
)

// The page for operators must know every finding, and map symptoms as the
// program does.
func TestConntrackPageIsComplete(t *testing.T) {
	b, err := os.ReadFile("../../docs/conntrack.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	for _, r := range advice.Rules {
		if !strings.Contains(page, "\n| `"+r.ID+"` |") {
			t.Errorf("%s is not among the findings", r.ID)
		}
	}
	for _, s := range advice.Symptoms {
		if want := "| `" + string(s.Symptom) + "`"; !strings.Contains(page, want) {
			t.Errorf("%s is not among the symptoms", s.Symptom)
		}
		if want := "| " + strings.Join(advice.Explaining(s.Symptom), ", ") + " |"; !strings.Contains(page, want) {
			t.Errorf("%s should map to %s", s.Symptom, want)
		}
	}
}
