package main

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/conntrack/advice"
	"github.com/trackless-dns/trackless/nodecache"
)

// The page for operators must know every finding, and map symptoms as the
// program does.
func TestConntrackPageIsComplete(t *testing.T) {
	b, err := os.ReadFile("../../docs/conntrack.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	for _, r := range advice.Rules {
		if !strings.Contains(page, "\n| `"+r.ID+"` |") {
			t.Errorf("%s is not among the findings", r.ID)
		}
	}
	for _, s := range advice.Symptoms {
		if want := "| `" + string(s.Symptom) + "`"; !strings.Contains(page, want) {
			t.Errorf("%s is not among the symptoms", s.Symptom)
		}
		if want := "| " + strings.Join(advice.Explaining(s.Symptom), ", ") + " |"; !strings.Contains(page, want) {
			t.Errorf("%s should map to %s", s.Symptom, want)
		}
	}
}

// The page for those who come from node-cache must know every flag.
func TestNodeCachePageIsComplete(t *testing.T) {
	b, err := os.ReadFile("../../docs/node-cache.md")
	if err != nil {
		t.Fatal(err)
	}
	fs := flag.NewFlagSet(nodeCacheName, flag.ContinueOnError)
	new(serveOptions).register(fs)
	new(nodecache.Options).Register(fs)
	fs.VisitAll(func(f *flag.Flag) {
		if !strings.Contains(string(b), "`-"+f.Name+"`") {
			t.Errorf("-%s is not on the page", f.Name)
		}
	})
}
