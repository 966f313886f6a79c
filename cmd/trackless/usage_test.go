package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
		{"help nonsense", exitUsage, []string{`"nonsense"`, "trackless --help"}},
		{"help conntrack nonsense", exitUsage, []string{`"nonsense"`, "trackless conntrack --help"}},
		{"help rules show nonsense", exitUsage, []string{`"nonsense"`, "rules show --help"}},
		{"conntrack help nonsense", exitUsage, []string{`"nonsense"`}},
		{"completion nonsense", exitUsage, []string{`"nonsense"`, "bash, fish, powershell and zsh"}},
		{"completion bash extra", exitUsage, []string{`"extra"`, "completion bash --help"}},
		{"probe nonsense", exitUsage, []string{`"nonsense"`, "probe --help"}},
		{"probe dns", exitUsage, []string{"it takes one name, not 0", "probe dns --help"}},
		{"rules nonsense", exitUsage, []string{`"nonsense"`, "rules --help"}},
		{"version -o xml", exitUsage, []string{"--output is table or json", `"xml"`}},
		{"version extra", exitUsage, []string{`"extra"`, "version --help"}},
		{"snapshot --nonsense", exitUsage, []string{"--nonsense", "snapshot --help"}},
		{"snapshot --window", exitUsage, []string{"--window", "value is missing", "500ms"}},
		{"snapshot --window 5", exitUsage, []string{`--window "5"`, "a number with a unit"}},
		{"snapshot --events=maybe", exitUsage, []string{`--events "maybe"`, "true or false"}},
		{"snapshot -o " + filepath.Join(dir, "none", "x"), exitFailure, []string{"--output", "none/x", "make the directory"}},
		{"snapshot -o " + dir, exitFailure, []string{"--output", dir, "name a file in it"}},
		{"snapshot -o " + filepath.Join(file, "x"), exitFailure, []string{"--output", "no directory"}},
		{"support-bundle -o " + filepath.Join(dir, "none", "x"), exitFailure, []string{"--output", "make the directory"}},
		{"conntrack stats --top x", exitUsage, []string{`--top "x"`, "a whole number"}},
		{"conntrack stats --netns " + file, exitCannotLook, []string{file, "no namespace", "ip netns list"}},
		{"conntrack watch --duration -1s", exitUsage, []string{"--duration -1s", "more than 0"}},
		{"conntrack watch --count -1", exitUsage, []string{"--count -1", "more than 0"}},
		{"conntrack limits --root " + filepath.Join(dir, "none"), exitCannotLook, []string{"--root", "none", "proc is"}},
		{"doctor --root " + file, exitCannotLook, []string{"--root", file, "no directory"}},
		{"doctor --interval 2", exitCannotLook, []string{`--interval "2"`, "2s"}},
		{"doctor --metrics localhost:9253", exitCannotLook, []string{`--metrics "localhost:9253"`, "http://127.0.0.1:9253/metrics"}},
		{"doctor --metrics http://localhost:9253/metrics", exitCannotLook, []string{"with an address"}},
		{"tune --entries -1", exitCannotLook, []string{`--entries "-1"`, "0 or more"}},
		{"tune --root " + filepath.Join(dir, "none"), exitCannotLook, []string{"--root", "none"}},
		{"tune --nodes " + file, exitCannotLook, []string{file, "not JSON", "trackless snapshot"}},
		{"lab --html " + filepath.Join(dir, "none", "x.html"), exitFailure, []string{"--html", "make the directory"}},
		{"rules show --interface averyveryverylongname", exitUsage, []string{`--interface "averyveryverylongname"`, "nodelocaldns"}},
		{"rules remove --interface a/b", exitUsage, []string{`--interface "a/b"`, "without /"}},
		{"serve -p x", exitUsage, []string{`"x", or -p`, "1 to 65535"}},
		{"serve -dns.port 99999", exitUsage, []string{`"99999"`, "1 to 65535"}},
		{"rules attach --socket " + filepath.Join(dir, "none"), exitFailure, []string{"none", "no such file", "-control of `trackless serve`"}},
		{"probe live --socket " + file, exitFailure, []string{file, "nobody listens", "-control of `trackless serve`"}},
		{"probe live --timeout x", exitUsage, []string{`--timeout "x"`, "500ms"}},
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
		if code != exitFailure || !strings.Contains(errs, "no such file") || out == "" {
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
