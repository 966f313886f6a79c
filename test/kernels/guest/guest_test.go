package main

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/test/kernels"
)

func TestJudge(t *testing.T) {
	for _, tc := range []struct {
		name, output string
		err          error
		want         kernels.Result
		says, hides  string
	}{
		{
			name:   "passed",
			output: "=== RUN   TestA\n--- PASS: TestA (0.01s)\n    --- PASS: TestA/sub (0.00s)\n--- PASS: TestB (0.01s)\nPASS\n",
			want:   kernels.Result{Passed: true, Tests: 2},
		},
		{
			name:   "one failed",
			output: "=== RUN   TestA\n    a_test.go:1: fine\n--- PASS: TestA (0.01s)\n=== RUN   TestB\n    b_test.go:1: broken\n--- FAIL: TestB (0.01s)\nFAIL\n",
			err:    errors.New("exit status 1"),
			want:   kernels.Result{Tests: 1},
			says:   "broken", hides: "fine",
		},
		{
			name:   "all passed, and the process failed",
			output: "--- PASS: TestA (0.01s)\nPASS\nthreads left\n",
			err:    errors.New("exit status 1"),
			want:   kernels.Result{Tests: 1},
			says:   "threads left",
		},
		{
			name:   "skipped",
			output: "    a_test.go:1: no such feature\n--- SKIP: TestA (0.00s)\n--- PASS: TestB (0.01s)\nPASS\n",
			want:   kernels.Result{Tests: 1, Skipped: []string{"TestA"}},
			says:   "no such feature",
		},
		{name: "none", output: "testing: warning: no tests to run\nPASS\n", says: "no test has run"},
		{name: "did not start", err: errors.New("no such file"), says: "no such file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got kernels.Result
			judge(&got, tc.output, tc.err)
			if got.Passed != tc.want.Passed || got.Tests != tc.want.Tests || !slices.Equal(got.Skipped, tc.want.Skipped) {
				t.Errorf("%+v", got)
			}
			if !strings.Contains(got.Failure, tc.says) || tc.hides != "" && strings.Contains(got.Failure, tc.hides) {
				t.Errorf("failure:\n%s", got.Failure)
			}
		})
	}
}

func TestResolve(t *testing.T) {
	modules := kernels.Modules{
		"nf_tables": {Aliases: []string{"nfnetlink-subsys-10"}},
		"dummy":     {Aliases: []string{"rtnl-link-dummy"}},
		"vendor":    {Aliases: []string{"pci:v00008086d*sv*"}},
	}
	for _, tc := range []struct {
		name string
		want []string
	}{
		{"nf_tables", []string{"nf_tables"}},
		{"nfnetlink_subsys_10", []string{"nf_tables"}},
		{"rtnl_link_dummy", []string{"dummy"}},
		{"pci:v00008086d1234sv1", []string{"vendor"}},
		{"rtnl_link_other", nil},
	} {
		if got := resolve(modules, tc.name); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}
