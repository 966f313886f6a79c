package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/cmd/trackless/rules"
	"github.com/trackless-dns/trackless/internal/testgolden"
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

// runPlan runs the verb `rules` and returns what it prints and its status.
func runPlan(t *testing.T, args ...string) (string, int, error) {
	t.Helper()
	cmd := rules.Command(readPlan)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), cli.ExitStatus(err), err
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
			out, code, err := runPlan(t, append([]string{"plan"}, args...)...)
			if code != 0 {
				t.Fatalf("%v: status %d, error %v", args, code, err)
			}
			// The table itself is compared with what nft makes of it.
			header, _, _ := strings.Cut(out, "table inet ")
			testgolden.Compare(t, tc.golden, header)
		}
	}
}

func TestRulesPlanErrors(t *testing.T) {
	good := corefile(t, planCorefile)
	wrong := corefile(t, "a {\n notrack 10.96.0.10 {\n  leese 1s\n }\n}\n")
	empty := corefile(t, "\n")
	golden := testgolden.NewRows(t, "refused-rules-plan.golden", wrong, "WRONG", empty, "EMPTY", good, "GOOD")
	for _, tc := range []struct {
		name string
		args []string
		code int
	}{
		{"a wrong option", []string{"-conf", wrong}, cli.ExitFailure},
		{"no Corefile", []string{"-conf", "/nonexistent/Corefile"}, cli.ExitFailure},
		{"an empty one", []string{"-conf", empty}, cli.ExitFailure},
		{"an unknown flag", []string{"-nosuchflag"}, cli.ExitUsage},
		{"an unknown format", []string{"-conf", good, "--format", "iptables"}, cli.ExitUsage},
		{"an argument", []string{good}, cli.ExitUsage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, code, err := runPlan(t, append([]string{"plan"}, tc.args...)...)
			if code != tc.code {
				t.Errorf("status %d, error %v; want %d", code, err, tc.code)
			}
			golden.Compare(t, tc.name, fmt.Sprint(err))
		})
	}
	if out, code, _ := runPlan(t, "plan", "--help"); code != 0 || !strings.Contains(out, "Exit status: 0 printed") {
		t.Errorf("--help: status %d\n%s", code, out)
	}
}

// Without a format, the backend of the Corefile decides.
func TestTheFormatOfAPlan(t *testing.T) {
	for backend, want := range map[string]string{"auto": "table inet ", "nftables": "table inet ", "iptables": "*raw", "iptables legacy": "*raw"} {
		out, _, err := runPlan(t, "plan", "-conf", corefile(t, ".:53 {\n bind 10.96.0.10\n notrack {\n  backend "+backend+"\n }\n whoami\n}\n"))
		if err != nil || !strings.Contains(out, "\n"+want) {
			t.Errorf("backend %s: no line begins with %q, error %v:\n%s", backend, want, err, out)
		}
	}
}
