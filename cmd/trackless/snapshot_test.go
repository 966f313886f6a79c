package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"

	"github.com/trackless-dns/trackless/internal/testgolden"
)

func TestSnapshotAndCompareRefuse(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good.json", `{"schema":"trackless.snapshot/v1","time":"2026-01-02T03:04:05Z","node":{"name":"a"}}`)
	newer := write("newer.json", `{"schema":"trackless.snapshot/v9","time":"2026-01-02T03:04:05Z"}`)
	half := write("half.json", `{"schema":"trackless.snapshot/v1","time":"2026`)
	golden := testgolden.NewRows(t, "refused-snapshot.golden", dir, "DIR")
	for _, tc := range []struct {
		args string
		code int
	}{
		{"snapshot --window -1s", cli.ExitUsage},
		{"snapshot --window 48h", cli.ExitUsage},
		{"snapshot --window 1ms", cli.ExitUsage},
		{"snapshot --top 0", cli.ExitUsage},
		{"snapshot before.json", cli.ExitUsage},
		{"snapshot --netns nowhere", cli.ExitCannotMeasure},
		{"compare", cli.ExitUsage},
		{"compare a b c", cli.ExitUsage},
		{"compare - -", cli.ExitUsage},
		{"compare -o yaml " + good + " " + good, cli.ExitUsage},
		{"compare " + good + " " + filepath.Join(dir, "none"), cli.ExitFailure},
		{"compare " + good + " " + newer, cli.ExitFailure},
		{"compare " + half + " " + good, cli.ExitFailure},
		{"compare --html " + dir + "/none/x.html " + good + " " + good, cli.ExitFailure},
	} {
		t.Run(tc.args, func(t *testing.T) {
			out, errs, code := trackless(strings.Fields(tc.args)...)
			if code != tc.code || out != "" {
				t.Errorf("exit status %d, want %d\n%s%s", code, tc.code, out, errs)
			}
			golden.Compare(t, tc.args, errs)
		})
	}
}
