//go:build privileged

package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
)

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
