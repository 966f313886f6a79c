package experiment_test

import (
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/lab/experiment"
)

func TestUnknownScenario(t *testing.T) {
	_, err := experiment.Experiment{Scenario: "doom"}.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "doom") || !strings.Contains(err.Error(), "exhaustion") {
		t.Errorf("error %v, want one that names the scenario and those that exist", err)
	}
}
