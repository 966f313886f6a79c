//go:build load

// Package differential plays one script against CoreDNS's own cache and ours
// and compares what clients and upstream saw.
package differential

import (
	"encoding/gob"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"

	"github.com/trackless-dns/trackless/plugin/cache"
	"github.com/trackless-dns/trackless/test/differential/script"
)

var (
	seed     = flag.Uint64("seed", 0, "seed of the script; 0 draws one")
	steps    = flag.Int("steps", 20_000, "steps of the script")
	recorded = flag.String("stock", "", "record of CoreDNS's cache to compare with, instead of making one")
)

// TestSameAsStock fails on any difference that is not in the table of
// differences.
func TestSameAsStock(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs a second test binary")
	}
	clog.Discard()
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	episodes := (*steps + script.Steps - 1) / script.Steps
	t.Logf("seed %d, %d steps", *seed, episodes*script.Steps)
	path := *recorded
	if path == "" {
		path = playStock(t, *seed, episodes)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()

	seen := make(tally)
	dec := gob.NewDecoder(f)
	for n := range episodes {
		stock := new(script.Episode)
		if err := dec.Decode(stock); err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("the record has only %d episodes", n)
			}
			t.Fatal(err)
		}
		ours := script.Run(t, *seed, n, openOurs, script.Metrics)
		if err := compare(stock, ours, seen); err != nil {
			t.Fatalf("seed %d episode %d %q: %v", *seed, n, stock.Config, err)
		}
	}
	t.Logf("%d replies and %d episodes' metrics compared; %d replies of names set aside after a difference in state",
		seen["replies"], seen["metrics"], seen["set aside"])
	for _, d := range differences {
		t.Logf("%6d × %s (%s)", seen[d.name], d.name, d.source)
		if seen[d.name] == 0 && *steps >= 200_000 {
			t.Errorf("%q did not happen: the row is stale, or the script too tame", d.name)
		}
	}
	if limit := seen["replies"] / 10; seen["set aside"] > limit {
		t.Errorf("%d replies set aside, more than a tenth", seen["set aside"])
	}
}

func openOurs(t *testing.T, corefile string, next plugin.Handler) (plugin.Handler, func()) {
	c := script.Setup(t, "cache", perType(corefile), next).(*cache.Cache)
	c.Jitter = func(time.Duration) time.Duration { return 0 }
	if err := c.Open(); err != nil {
		t.Fatal(err)
	}
	return c, c.Close
}

// perType adds the option with which a denial answers its question alone, as in CoreDNS.
// TestCut is the test without it.
func perType(corefile string) string {
	if head, options, ok := strings.Cut(corefile, "{"); ok {
		return head + "{\nnxdomain type" + options
	}
	return corefile + " {\nnxdomain type\n}"
}

// playStock has CoreDNS's cache play the script in its own test binary, and returns
// the file with the record.
func playStock(t *testing.T, seed uint64, episodes int) string {
	t.Helper()
	dir := t.TempDir()
	binary, out := filepath.Join(dir, "stock.test"), filepath.Join(dir, "stock.gob")
	run := func(cmd *exec.Cmd) {
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, text)
		}
	}
	run(exec.Command("go", "test", "-c", "-o", binary, "./stock"))
	cmd := exec.Command(binary, "-test.run", "^TestPlay$")
	cmd.Env = append(os.Environ(), "DIFFERENTIAL_OUT="+out, fmt.Sprint("DIFFERENTIAL_SEED=", seed), fmt.Sprint("DIFFERENTIAL_EPISODES=", episodes))
	run(cmd)
	return out
}
