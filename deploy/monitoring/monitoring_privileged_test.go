//go:build privileged

package main

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
)

func TestPromtool(t *testing.T) {
	testns.Program(t, "promtool")
	for _, args := range [][]string{
		{"check", "rules", "rules.yaml"},
		{"test", "rules", "rules_test.yaml"},
	} {
		t.Run(args[0], func(t *testing.T) {
			if out, err := exec.CommandContext(t.Context(), "promtool", args...).CombinedOutput(); err != nil {
				t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
			}
		})
	}
}
