package main

import (
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/node/advice"
)

func TestDoctorHelpMapsSymptoms(t *testing.T) {
	out, _, _ := trackless("doctor", "--help")
	for _, s := range advice.Symptoms {
		if !strings.Contains(out, string(s.Symptom)+": "+s.Description) {
			t.Errorf("%s is not in the help", s.Symptom)
		}
	}
}
