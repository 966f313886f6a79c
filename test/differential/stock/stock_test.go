// Package stock plays scripts against CoreDNS's own cache. It is a test
// binary of its own, since that cache and ours register the same directive,
// and its clock can only be set from within a testing/synctest bubble.
package stock

import (
	"encoding/gob"
	"os"
	"strconv"
	"testing"

	"github.com/coredns/coredns/plugin"
	_ "github.com/coredns/coredns/plugin/cache"
	clog "github.com/coredns/coredns/plugin/pkg/log"

	"github.com/trackless-dns/trackless/test/differential/script"
)

// TestPlay is run by the differential test, which names the file that the
// episodes go to.
func TestPlay(t *testing.T) {
	path := os.Getenv("DIFFERENTIAL_OUT")
	if path == "" {
		t.Skip("not run by the differential test")
	}
	clog.Discard()
	seed, err := strconv.ParseUint(os.Getenv("DIFFERENTIAL_SEED"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	episodes, err := strconv.Atoi(os.Getenv("DIFFERENTIAL_EPISODES"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	enc := gob.NewEncoder(f)
	for n := range episodes {
		e := script.Run(t, seed, n, func(t *testing.T, corefile string, next plugin.Handler) (plugin.Handler, func()) {
			return script.Setup(t, "cache", corefile, next), func() {}
		}, script.Metrics)
		if err := enc.Encode(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
