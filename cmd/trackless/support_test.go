package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
)

func TestSupportBundleRefuses(t *testing.T) {
	for _, tc := range []struct {
		args string
		code int
		says string
	}{
		{"--without passwords", cli.ExitUsage, "there are snapshot, doctor, limits, rules, corefile, log"},
		{"--window -1s", cli.ExitUsage, "--window -1s"},
		{"bundle.tar", cli.ExitUsage, "unexpected argument"},
		{"--window 0 --without doctor -o " + filepath.Join(t.TempDir(), "none", "b.tar"), cli.ExitFailure, "no such file"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			out, errs, code := trackless(append([]string{"support-bundle"}, strings.Fields(tc.args)...)...)
			if code != tc.code || !strings.Contains(errs, tc.says) || out != "" {
				t.Errorf("exit status %d, want %d\n%s%s", code, tc.code, out, errs)
			}
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
