package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/internal/testns"
)

const planCorefile = `cluster.local {
    bind 169.254.20.10 fd00::a
    notrack {
        untrack 169.254.20.10:8080
    }
    forward . 10.96.0.99
    prometheus 127.0.0.1:0
}
example.org {
    bind 10.96.0.10
    notrack
    cache
    forward . 10.96.0.99
}
`

// corefile writes a Corefile and returns its path.
func corefile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "Corefile")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRulesPlan(t *testing.T) {
	path := corefile(t, planCorefile)
	none := corefile(t, "example.org {\nwhoami\n}\n")
	// Each way to write the flags gives what the first one does.
	for _, tc := range []struct {
		golden string
		args   [][]string
	}{
		{"rules-plan.nft", [][]string{{"-conf", path}, {"--conf", path}, {"-conf=" + path}, {"--format", "nft", "-dns.port", "53", "-conf", path}}},
		{"rules-plan.iptables", [][]string{{"-conf", path, "--format", "iptables-save"}, {"-format=iptables-save", "-conf", path}}},
		{"rules-plan.json", [][]string{{"-conf", path, "--format", "iptables-save", "--output", "json"}, {"-conf", path, "-o", "json", "-format", "iptables-save"}}},
		{"rules-plan-none.nft", [][]string{{"-conf", none}}},
	} {
		for _, args := range tc.args {
			out, code, err := runRules(t, nil, append([]string{"plan"}, args...)...)
			if code != 0 {
				t.Fatalf("%v: status %d, error %v", args, code, err)
			}
			// The table itself is compared with what nft makes of it.
			header, _, _ := strings.Cut(out, "table inet ")
			golden(t, tc.golden, header)
		}
	}
}

func TestRulesPlanErrors(t *testing.T) {
	good := corefile(t, planCorefile)
	for _, tc := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"a wrong option", []string{"-conf", corefile(t, "a {\n notrack 10.96.0.10 {\n  leese 1s\n }\n}\n")}, exitFailure, "Corefile:3 - Error during parsing: unknown option \"leese\""},
		{"no Corefile", []string{"-conf", "/nonexistent/Corefile"}, exitFailure, "read the Corefile: open /nonexistent/Corefile"},
		{"an empty one", []string{"-conf", corefile(t, "\n")}, exitFailure, "is empty"},
		{"an unknown flag", []string{"-nosuchflag"}, exitUsage, "rules plan:"},
		{"an unknown format", []string{"-conf", good, "--format", "iptables"}, exitUsage, `--format is nft or iptables-save, not "iptables"`},
		{"an argument", []string{good}, exitUsage, "the Corefile is named with -conf"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, code, err := runRules(t, nil, append([]string{"plan"}, tc.args...)...)
			if code != tc.code || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("status %d, error %v; want %d, %q", code, err, tc.code, tc.want)
			}
		})
	}
	if out, code, _ := runRules(t, nil, "plan", "--help"); code != 0 || !strings.Contains(out, "Exit status: 0 printed") {
		t.Errorf("--help: status %d\n%s", code, out)
	}
}

// What plan prints is what the programs read, and they make the same of it.
func TestThePlanIsReadByThePrograms(t *testing.T) {
	testns.Program(t, "nft")
	testns.Program(t, "iptables-nft-restore")
	testns.Enter(t)
	path := corefile(t, planCorefile)
	for _, tc := range []struct {
		format, program string
		args            []string
	}{
		{"nft", "nft", []string{"-f", "-"}},
		{"iptables-save", "iptables-nft-restore", []string{"--noflush"}},
		{"iptables-save", "ip6tables-nft-restore", []string{"--noflush"}},
	} {
		out, _, err := runRules(t, nil, "plan", "-conf", path, "--format", tc.format)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(tc.program, "tables-nft-restore") {
			v4, v6, ok := strings.Cut(out, "# ip6tables-restore --noflush\n")
			if !ok {
				t.Fatalf("no part for IPv6 in\n%s", out)
			}
			if out = v4; strings.HasPrefix(tc.program, "ip6") {
				out = v6
			}
		}
		cmd := exec.Command(tc.program, tc.args...)
		cmd.Stdin = strings.NewReader(out)
		if said, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s\n%s", tc.program, err, said, out)
		}
	}
	out, _, err := runRules(t, nil, "plan", "-conf", path)
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(out, "random id of the instance:\n")
	if diff := cmp.Diff(table, testns.Run(t, "nft", "list", "table", "inet", planTable)); diff != "" {
		t.Errorf("the table that nft makes of the plan differs (-plan +nft):\n%s", diff)
	}
	saved := testns.Run(t, "iptables-nft-save", "-t", "raw")
	plan, _, err := runRules(t, nil, "plan", "-conf", path, "--format", "iptables-save")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(plan) {
		// iptables-save writes -s and -d in this order, as we do.
		if strings.HasPrefix(line, "-A") && !strings.Contains(line, "fd00::a") && !strings.Contains(saved, strings.TrimSpace(strings.TrimSuffix(line, "-j NOTRACK\n"))) {
			t.Errorf("%q is not what iptables-save says:\n%s", line, saved)
		}
	}
}
