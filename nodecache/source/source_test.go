package source

import (
	"flag"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/trackless-dns/trackless/nodecache"
	"github.com/trackless-dns/trackless/server"
)

// newSource gives a source whose files lie in a directory of the test.
func newSource(t *testing.T) (*Source, string) {
	t.Helper()
	dir := t.TempDir()
	var o nodecache.Options
	fs := flag.NewFlagSet("node-cache", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	o.Register(fs)
	if err := fs.Parse([]string{"-localip", "169.254.20.10", "-basecorefile", filepath.Join(dir, "base"), "-corefile", filepath.Join(dir, "Corefile"), "-kubednscm", dir}); err != nil {
		t.Fatal(err)
	}
	n := New(&o, 53, []string{"reload", "bind", "notrack", "errors", "cache", "forward"})
	n.inputs.upstream = netip.MustParseAddr("10.96.0.99")
	return n, dir
}

// Files change under a running process: what is no good leaves the Corefile as
// it was, and is counted once.
func TestNodeCacheSourceKeepsWhatWorks(t *testing.T) {
	const base = ".:53 {\n    bind __PILLAR__LOCAL__DNS__\n    forward . __PILLAR__CLUSTER__DNS__\n}\n"
	for _, tc := range []struct {
		name   string
		files  map[string]string
		errors int
		want   string // in the Corefile afterwards
	}{
		{"another template", map[string]string{"base": strings.Replace(base, ".:53", "new.local:53", 1)}, 0, "new.local:53 {"},
		{"a stub domain", map[string]string{"stubDomains": `{"acme.local": ["10.0.0.1"]}`}, 0, "acme.local:53 {"},
		{"another stub domain that makes no sense", map[string]string{"stubDomains": "{"}, 1, "old.local:53 {"},
		{"a template with an open block", map[string]string{"base": ".:53 {\n"}, 1, "old.local:53 {"},
		{"a template that is not filled in", map[string]string{"base": "__PILLAR__DNS__DOMAIN__:53 {\n}\n"}, 1, "old.local:53 {"},
		{"no template any more", map[string]string{"base": ""}, 0, "old.local:53 {"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, dir := newSource(t)
			n.errors.total.Reset()
			write := func(files map[string]string) {
				for name, text := range files {
					path := filepath.Join(dir, name)
					if text == "" {
						if err := os.Remove(path); err != nil {
							t.Fatal(err)
						}
						continue
					}
					if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
			write(map[string]string{"base": base, "stubDomains": `{"old.local": ["10.0.0.1"]}`})
			if err := n.update(n.read()); err != nil {
				t.Fatal(err)
			}
			write(tc.files)
			for range 3 {
				n.change(n.read(), false)
			}
			if got := testutil.ToFloat64(n.errors.total.WithLabelValues(errorConfigMap)); got != float64(tc.errors) {
				t.Errorf("%g errors are counted, want %d", got, tc.errors)
			}
			input, err := n.Load(server.Type)
			if err != nil {
				t.Fatal(err)
			}
			if text := string(input.Body()); !strings.Contains(text, tc.want) || !strings.Contains(text, "forward . 10.96.0.99") {
				t.Errorf("no %q in\n%s", tc.want, text)
			}
			if written, err := os.ReadFile(n.options.Corefile); err != nil || string(written) != string(input.Body()) {
				t.Errorf("written is, %v:\n%s", err, written)
			}
		})
	}
}
