package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
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
	for _, test := range []struct {
		args string
		code int
		says []string
	}{
		{"help nonsense", cli.ExitUsage, []string{`"nonsense"`, "trackless --help"}},
		{"help conntrack nonsense", cli.ExitUsage, []string{`"nonsense"`, "trackless conntrack --help"}},
		{"help rules show nonsense", cli.ExitUsage, []string{`"nonsense"`, "rules show --help"}},
		{"conntrack help nonsense", cli.ExitUsage, []string{`"nonsense"`}},
		{"completion nonsense", cli.ExitUsage, []string{`"nonsense"`, "bash, fish, powershell and zsh"}},
		{"completion bash extra", cli.ExitUsage, []string{`"extra"`, "completion bash --help"}},
		{"probe nonsense", cli.ExitUsage, []string{`"nonsense"`, "probe --help"}},
		{"probe dns", cli.ExitUsage, []string{"it takes one name, not 0", "probe dns --help"}},
		{"rules nonsense", cli.ExitUsage, []string{`"nonsense"`, "rules --help"}},
		{"version -o xml", cli.ExitUsage, []string{"--output is table or json", `"xml"`}},
		{"version extra", cli.ExitUsage, []string{`"extra"`, "version --help"}},
		{"snapshot --nonsense", cli.ExitUsage, []string{"--nonsense", "snapshot --help"}},
		{"snapshot --window", cli.ExitUsage, []string{"--window", "value is missing", "500ms"}},
		{"snapshot --window 5", cli.ExitUsage, []string{`--window "5"`, "a number with a unit"}},
		{"snapshot --events=maybe", cli.ExitUsage, []string{`--events "maybe"`, "true or false"}},
		{"snapshot -o " + filepath.Join(dir, "none", "x"), cli.ExitFailure, []string{"--output", "none/x", "make the directory"}},
		{"snapshot -o " + dir, cli.ExitFailure, []string{"--output", dir, "name a file in it"}},
		{"snapshot -o " + filepath.Join(file, "x"), cli.ExitFailure, []string{"--output", "no directory"}},
		{"support-bundle -o " + filepath.Join(dir, "none", "x"), cli.ExitFailure, []string{"--output", "make the directory"}},
		{"conntrack stats --top x", cli.ExitUsage, []string{`--top "x"`, "a whole number"}},
		{"conntrack stats --netns " + file, cli.ExitCannotLook, []string{file, "no namespace", "ip netns list"}},
		{"conntrack watch --duration -1s", cli.ExitUsage, []string{"--duration -1s", "more than 0"}},
		{"conntrack watch --count -1", cli.ExitUsage, []string{"--count -1", "more than 0"}},
		{"conntrack limits --root " + filepath.Join(dir, "none"), cli.ExitCannotLook, []string{"--root", "none", "proc is"}},
		{"doctor --root " + file, cli.ExitCannotLook, []string{"--root", file, "no directory"}},
		{"doctor --interval 2", cli.ExitCannotLook, []string{`--interval "2"`, "2s"}},
		{"doctor --metrics localhost:9253", cli.ExitCannotLook, []string{`--metrics "localhost:9253"`, "http://127.0.0.1:9253/metrics"}},
		{"doctor --metrics http://localhost:9253/metrics", cli.ExitCannotLook, []string{"with an address"}},
		{"tune --entries -1", cli.ExitCannotLook, []string{`--entries "-1"`, "0 or more"}},
		{"tune --root " + filepath.Join(dir, "none"), cli.ExitCannotLook, []string{"--root", "none"}},
		{"tune --nodes " + file, cli.ExitCannotLook, []string{file, "not JSON", "trackless snapshot"}},
		{"lab --html " + filepath.Join(dir, "none", "x.html"), cli.ExitFailure, []string{"--html", "make the directory"}},
		{"rules show --interface averyveryverylongname", cli.ExitUsage, []string{`--interface "averyveryverylongname"`, "nodelocaldns"}},
		{"rules remove --interface a/b", cli.ExitUsage, []string{`--interface "a/b"`, "without /"}},
		{"serve -p x", cli.ExitUsage, []string{`"x", or -p`, "1 to 65535"}},
		{"serve -dns.port 99999", cli.ExitUsage, []string{`"99999"`, "1 to 65535"}},
		{"rules attach --socket " + filepath.Join(dir, "none"), cli.ExitFailure, []string{"none", "no such file", "-control of `trackless serve`"}},
		{"probe live --socket " + file, cli.ExitFailure, []string{file, "nobody listens", "-control of `trackless serve`"}},
		{"probe live --timeout x", cli.ExitUsage, []string{`--timeout "x"`, "500ms"}},
	} {
		t.Run(test.args, func(t *testing.T) {
			t.Parallel()
			out, errs, code := trackless(strings.Fields(test.args)...)
			if code != test.code {
				t.Errorf("exit status %d, want %d", code, test.code)
			}
			for _, want := range test.says {
				if !strings.Contains(out+errs, want) {
					t.Errorf("no %q in\n%s%s", want, out, errs)
				}
			}
		})
	}
}

// A socket that was named and on which nobody answers is a failure, also where
// there is all the rest to show.
func TestRulesShowOfASilentSocket(t *testing.T) {
	t.Parallel()
	for _, output := range []string{"table", "json"} {
		out, errs, code := inside(t, "rules", "show", "-o", output, "--socket", filepath.Join(t.TempDir(), "none"))
		if code != cli.ExitFailure || !strings.Contains(errs, "no such file") || out == "" {
			t.Errorf("%s: exit status %d\n%s%s", output, code, out, errs)
		}
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
