//go:build privileged

package testcgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
)

func TestScriptRunsInTheGroup(t *testing.T) {
	t.Parallel()
	testns.Root(t)
	if lacking := Lacking(); lacking != "" {
		testns.Skip(t, "%s", lacking)
	}
	for _, tc := range []struct {
		name   string
		mib    int
		killed bool
	}{
		{"a megabyte", 1, false},
		{"more than the limit", 200, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g, err := New(Limits{Memory: 64 << 20})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := g.Close(); err != nil {
					t.Error(err)
				}
			})
			script := filepath.Join(t.TempDir(), "script")
			// dd has a buffer of this size, and touches all of it.
			if err := g.Script(script, fmt.Sprintf(`exec dd "$@" bs=%dM count=1 status=none`, tc.mib)); err != nil {
				t.Fatal(err)
			}
			if err := exec.Command(script, "if=/dev/zero", "of="+os.DevNull).Run(); (err != nil) != tc.killed {
				t.Errorf("it ended with %v", err)
			}
			if killed, err := g.Killed(); err != nil || killed > 0 != tc.killed {
				t.Errorf("%d killed, %v", killed, err)
			}
		})
	}
}

func TestProcessorTimeIsBounded(t *testing.T) {
	t.Parallel()
	testns.Root(t)
	if lacking := Lacking(); lacking != "" {
		testns.Skip(t, "%s", lacking)
	}
	g, err := New(Limits{CPU: Period / 10})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	script := filepath.Join(t.TempDir(), "script")
	// More than a tenth of any time.
	if err := g.Script(script, "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if periods, throttled, err := g.Throttled(); err != nil || throttled == 0 || throttled > periods {
		t.Errorf("throttled in %d of %d periods, %v", throttled, periods, err)
	}
}
