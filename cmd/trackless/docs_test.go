package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/node/advice"
	"github.com/trackless-dns/trackless/node/snapshot"
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

// The page about snapshots must know every field.
func TestSnapshotPageIsComplete(t *testing.T) {
	b, err := os.ReadFile("../../docs/snapshot.md")
	if err != nil {
		t.Fatal(err)
	}
	paths := fieldPaths(reflect.TypeFor[snapshot.Snapshot](), "")
	if len(paths) < 100 {
		t.Fatalf("only %d fields", len(paths))
	}
	for _, path := range paths {
		if !strings.Contains(string(b), "\n| `"+path+"` |") {
			t.Errorf("%s is not on the page", path)
		}
	}
	for line := range strings.Lines(string(b)) {
		if path, _, ok := strings.Cut(strings.TrimPrefix(line, "| `"), "` |"); ok && strings.HasPrefix(line, "| `") && !slices.Contains(paths, path) {
			t.Errorf("%s is on the page, and there is no such field", path)
		}
	}
}

// fieldPaths lists the fields of a type as JSON has them: a.b for objects, a[].b
// for lists of them.
func fieldPaths(typ reflect.Type, prefix string) []string {
	var paths []string
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		inner, path := typ.Field(i).Type, prefix+name
		if inner.Kind() == reflect.Slice {
			inner, path = inner.Elem(), path+"[]"
		}
		if inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct && strings.Contains(inner.PkgPath(), "trackless") {
			paths = append(paths, fieldPaths(inner, path+".")...)
			continue
		}
		paths = append(paths, path)
	}
	return paths
}

// commandLine is one of ours in a page, up to where the shell's or the page's
// own begins.
var commandLine = regexp.MustCompile("(?m)(?:`|-- )trackless ([a-z][^`#|>\n]*)")

// Who follows a page at night must not be told of a command that does not
// exist. A runbook names one at least.
func TestDocCommands(t *testing.T) {
	var pages []string
	for _, pattern := range []string{"*.md", "*/*.md"} {
		more, err := filepath.Glob("../../docs/" + pattern)
		if err != nil || len(more) == 0 {
			t.Fatalf("%d pages docs/%s, %v", len(more), pattern, err)
		}
		pages = append(pages, more...)
	}
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, m := range commandLine.FindAllStringSubmatch(string(b), -1) {
			found++
			args := strings.Fields(strings.ReplaceAll(m[1], "'", ""))
			cmd, rest, err := rootCommand().Find(args)
			if err == nil && cmd.HasParent() {
				if err = cmd.ParseFlags(rest); err == nil && !cmd.Runnable() {
					err = fmt.Errorf("it takes a further verb")
				}
			}
			if err != nil || !cmd.HasParent() {
				t.Errorf("%s: trackless %s: %v", page, m[1], err)
			}
		}
		if found == 0 && filepath.Base(filepath.Dir(page)) == "runbooks" {
			t.Errorf("%s names no command of ours", page)
		}
	}
}

// The page about the cache must know every field.
func TestCachePageIsComplete(t *testing.T) {
	b, err := os.ReadFile("../../docs/cache.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[cacheReport](), reflect.TypeFor[control.CachedAnswer](), reflect.TypeFor[control.CacheFlushed]()} {
		for _, f := range reflect.VisibleFields(typ) {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name != "" && !strings.Contains(string(b), "`"+name+"`") {
				t.Errorf("%s of %s is not on the page", name, typ)
			}
		}
	}
}
