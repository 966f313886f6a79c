package chaos

import (
	"strings"
	"testing"
)

// TestCasesAreWhole holds every case against what the matrix needs of it.
func TestCasesAreWhole(t *testing.T) {
	names := map[string]bool{}
	for _, c := range Cases() {
		switch {
		case c.Name == "" || names[c.Name]:
			t.Errorf("the name %q is empty or there twice", c.Name)
		case c.Fault == "" || c.Bar == "" || c.Play == nil:
			t.Errorf("%s: no fault, bar or play", c.Name)
		case c.Sabotage.What == "" || c.Sabotage.Fails == "" || c.Sabotage.Server == nil && c.Sabotage.Apply == nil:
			t.Errorf("%s: no sabotage", c.Name)
		}
		names[c.Name] = true
	}
	m := Matrix{Cases: Cases()}
	if err := m.Select([]string{"sigkill", "oom"}); err != nil || len(m.Cases) != 2 {
		t.Errorf("selected %d cases, %v", len(m.Cases), err)
	}
	if err := m.Select([]string{"sigterm"}); err == nil || !strings.Contains(err.Error(), "sigkill") {
		t.Errorf("selecting what is not there: %v; want the names that are", err)
	}
}
