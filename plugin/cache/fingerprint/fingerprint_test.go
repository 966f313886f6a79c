package fingerprint

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coredns/caddy/caddyfile"
)

// write makes a file below the folder, and the folders above it.
func write(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestFilesChangeWhileDirectivesAreSetUp: it is unknown which contents the directives
// have read, so there is no fingerprint.
func TestFilesChangeWhileDirectivesAreSetUp(t *testing.T) {
	before, after := &facts{Files: contents{"a": "1"}}, &facts{Files: contents{"a": "1"}}
	if fingerprint(before, after) == "" {
		t.Error("equal contents have no fingerprint")
	}
	after.Files["a"] = "2"
	if fingerprint(before, after) != "" {
		t.Error("contents that changed have a fingerprint")
	}
}

// TestReaderBounds: a file that is too large to be read still differs from another
// file, and a folder with too many files is an error.
func TestReaderBounds(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "large", strings.Repeat("x", 100))
	write(t, dir, "small", "x")
	read := func(bytes int64, name string) (string, error) {
		r, found := newReader(), contents{}
		r.bytes, r.limit = bytes, 3
		err := r.named(found, filepath.Join(dir, name), "")
		return found[filepath.Join(dir, name)], err
	}
	before, err := read(99, "large")
	if again, againErr := read(99, "large"); err != nil || againErr != nil || again != before {
		t.Fatalf("unchanged, but %q is %q now: %v %v", before, again, err, againErr)
	}
	if whole, _ := read(100, "large"); whole == before {
		t.Error("a file that fits the bound is not told by its contents")
	}
	write(t, dir, "new", strings.Repeat("x", 100))
	if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "large")); err != nil {
		t.Fatal(err)
	}
	if after, err := read(99, "large"); err != nil || after == before {
		t.Errorf("another file of the same size counts as the same: %v", err)
	}
	if _, err := read(1000, ""); err != nil { // the folder and two files
		t.Error(err)
	}
	write(t, dir, "one more", "")
	if _, err := read(1000, ""); err == nil {
		t.Error("a folder with more files than the bound was read")
	}
	// It says that it is empty.
	r := newReader()
	r.bytes = 10
	if err := r.named(contents{}, "/proc/self/mountinfo", ""); err == nil {
		t.Error("a file beyond the bound that hides its size is no error")
	}
}

// TestReaderReadsOnce: a file that two server blocks name is read once.
func TestReaderReadsOnce(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "zone", "1")
	path := filepath.Join(dir, "zone")
	r, first, second := newReader(), contents{}, contents{}
	if err := r.named(first, path, ""); err != nil {
		t.Fatal(err)
	}
	left := r.bytes
	if err := r.named(second, path, ""); err != nil || second[path] != first[path] || r.bytes != left {
		t.Errorf("read again: %v, %v and %v, %d bytes", err, first, second, left-r.bytes)
	}
}

func TestHostsNamesNoFile(t *testing.T) {
	for _, tc := range []struct {
		corefile string
		want     bool
	}{
		{"hosts", true}, {"hosts {\n192.0.2.1 a.example.org\n}", true}, {"hosts\nwhoami", true}, {"hosts /dir/hosts", false},
		{"hosts /dir/hosts example.org {\nfallthrough\n}", false},
	} {
		before := ". {\n" + tc.corefile + "\n}"
		tokens := parsed(t, before)
		names := argumentsOf("hosts", tokens["hosts"])
		got := len(names) > 0 && names[0] == defaultHosts
		if got != tc.want {
			t.Errorf("%q names %q", tc.corefile, names)
		}
	}
}

func parsed(t *testing.T, corefile string) map[string][]caddyfile.Token {
	t.Helper()
	blocks, err := caddyfile.Parse("Corefile", strings.NewReader(corefile), nil)
	if err != nil {
		t.Fatal(err)
	}
	return blocks[0].Tokens
}

func TestBlocksMeet(t *testing.T) {
	facts := func(bind ...string) blockFacts { return blockFacts{Listeners: []string{"dns://:53"}, Bind: bind} }
	other := facts("127.0.0.1")
	other.Listeners = []string{"dns://:54"}
	for _, tc := range []struct {
		name string
		a, b blockFacts
		want bool
	}{
		{"no addresses", facts(), facts(), true},
		{"one without", facts("127.0.0.1"), facts(), true},
		{"same address", facts("127.0.0.1", "127.0.0.2"), facts("127.0.0.2"), true},
		{"other address", facts("127.0.0.1"), facts("127.0.0.2"), false},
		{"interface", facts("lo"), facts("127.0.0.2"), true},
		{"any address", facts("0.0.0.0"), facts("127.0.0.2"), true},
		{"other port", facts("127.0.0.1"), other, false},
	} {
		if got := tc.a.meets(tc.b); got != tc.want {
			t.Errorf("%s: %t, want %t", tc.name, got, tc.want)
		}
	}
}
