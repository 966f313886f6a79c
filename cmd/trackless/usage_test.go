package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"

	"github.com/trackless-dns/trackless/internal/testgolden"
)

// Every wrong input is named with its flag or file and its value, and what would
// be right; and its exit status is not 0.
func TestWrongInput(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	golden := testgolden.NewRows(t, "usage.golden", dir, "DIR")
	for _, test := range []struct {
		args string
		code int
	}{
		{"help nonsense", cli.ExitUsage},
		{"help conntrack nonsense", cli.ExitUsage},
		{"help rules show nonsense", cli.ExitUsage},
		{"conntrack help nonsense", cli.ExitUsage},
		{"completion nonsense", cli.ExitUsage},
		{"completion bash extra", cli.ExitUsage},
		{"probe nonsense", cli.ExitUsage},
		{"probe dns", cli.ExitUsage},
		{"rules nonsense", cli.ExitUsage},
		{"version -o xml", cli.ExitUsage},
		{"version extra", cli.ExitUsage},
		{"snapshot --nonsense", cli.ExitUsage},
		{"snapshot --window", cli.ExitUsage},
		{"snapshot --window 5", cli.ExitUsage},
		{"snapshot --events=maybe", cli.ExitUsage},
		{"snapshot -o " + filepath.Join(dir, "none", "x"), cli.ExitFailure},
		{"snapshot -o " + dir, cli.ExitFailure},
		{"snapshot -o " + filepath.Join(file, "x"), cli.ExitFailure},
		{"support-bundle -o " + filepath.Join(dir, "none", "x"), cli.ExitFailure},
		{"conntrack stats --top x", cli.ExitUsage},
		{"conntrack stats --netns " + file, cli.ExitCannotMeasure},
		{"conntrack watch --duration -1s", cli.ExitUsage},
		{"conntrack watch --count -1", cli.ExitUsage},
		{"conntrack limits --root " + filepath.Join(dir, "none"), cli.ExitCannotMeasure},
		{"doctor --root " + file, cli.ExitCannotMeasure},
		{"doctor --interval 2", cli.ExitCannotMeasure},
		{"doctor --metrics localhost:9253", cli.ExitCannotMeasure},
		{"doctor --metrics http://localhost:9253/metrics", cli.ExitCannotMeasure},
		{"tune --entries -1", cli.ExitCannotMeasure},
		{"tune --root " + filepath.Join(dir, "none"), cli.ExitCannotMeasure},
		{"tune --nodes " + file, cli.ExitCannotMeasure},
		{"lab --html " + filepath.Join(dir, "none", "x.html"), cli.ExitFailure},
		{"rules show --interface averyveryverylongname", cli.ExitUsage},
		{"rules remove --interface a/b", cli.ExitUsage},
		{"serve -p x", cli.ExitUsage},
		{"serve -dns.port 99999", cli.ExitUsage},
		{"rules attach --socket " + filepath.Join(dir, "none"), cli.ExitFailure},
		{"probe live --socket " + file, cli.ExitFailure},
		{"probe live --timeout x", cli.ExitUsage},
	} {
		t.Run(test.args, func(t *testing.T) {
			t.Parallel()
			out, errs, code := trackless(strings.Fields(test.args)...)
			if code != test.code {
				t.Errorf("exit status %d, want %d", code, test.code)
			}
			golden.Compare(t, test.args, out+errs)
		})
	}
}

func TestHelpAndCompletion(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"help":                "trackless [command]",
		"help conntrack list": "--dport",
		"help doctor":         "--interval",
		"completion":          "bash",
	} {
		out, errs, code := trackless(strings.Fields(args)...)
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("%s: exit status %d\n%s%s", args, code, out, errs)
		}
	}
}
