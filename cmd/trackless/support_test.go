package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"

	"github.com/trackless-dns/trackless/internal/testgolden"
)

func TestSupportBundleRefuses(t *testing.T) {
	dir := t.TempDir()
	golden := testgolden.NewRows(t, "refused-support.golden", dir, "DIR")
	for _, tc := range []struct {
		args string
		code int
	}{
		{"--without passwords", cli.ExitUsage},
		{"--window -1s", cli.ExitUsage},
		{"bundle.tar", cli.ExitUsage},
		{"--window 0 --without doctor -o " + filepath.Join(dir, "none", "b.tar"), cli.ExitFailure},
	} {
		t.Run(tc.args, func(t *testing.T) {
			out, errs, code := trackless(append([]string{"support-bundle"}, strings.Fields(tc.args)...)...)
			if code != tc.code || out != "" {
				t.Errorf("exit status %d, want %d\n%s%s", code, tc.code, out, errs)
			}
			golden.Compare(t, tc.args, errs)
		})
	}
}

func TestBundleToStandardOutput(t *testing.T) {
	out, errs, code := trackless("support-bundle", "--window", "0", "--without", "doctor", "-o", "-")
	if code != 0 || !strings.HasPrefix(out, "\x1f\x8b") || strings.Contains(errs, "Look at it") {
		t.Errorf("exit status %d, %d bytes: %s", code, len(out), errs)
	}
	if found, _ := filepath.Glob("trackless-support-*"); len(found) > 0 {
		t.Errorf("it wrote %v too", found)
		for _, name := range found {
			_ = os.Remove(name)
		}
	}
}
