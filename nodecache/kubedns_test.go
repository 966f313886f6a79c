package nodecache

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/internal/testgolden"
)

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReadKubeDNS(t *testing.T) {
	golden := testgolden.NewRows(t, "refused-kubedns.golden")
	for _, tc := range []struct {
		name    string
		files   map[string]string
		want    KubeDNS
		refused bool
	}{
		{name: "empty"},
		{name: "other keys", files: map[string]string{"federations": "{}"}},
		{name: "empty values", files: map[string]string{"stubDomains": "", "upstreamNameservers": "\n"}},
		{name: "stub domains", files: map[string]string{"stubDomains": `{"acme.local": ["1.2.3.4", "1.2.3.5:5353"], "v6.local": ["fd00::1", "[fd00::1]:53"], "n.local": ["ns.acme.org"]}`},
			want: KubeDNS{StubDomains: map[string][]string{"acme.local": {"1.2.3.4", "1.2.3.5:5353"}, "v6.local": {"fd00::1", "[fd00::1]:53"}, "n.local": {"ns.acme.org"}}}},
		{name: "upstream servers", files: map[string]string{"upstreamNameservers": `["8.8.8.8", "8.8.4.4:53"]`},
			want: KubeDNS{UpstreamNameservers: []string{"8.8.8.8", "8.8.4.4:53"}}},
		{name: "no JSON", files: map[string]string{"stubDomains": "acme.local"}, refused: true},
		{name: "another shape", files: map[string]string{"upstreamNameservers": `"8.8.8.8"`}, refused: true},
		{name: "a bad domain", files: map[string]string{"stubDomains": `{"acme local": ["1.2.3.4"]}`}, refused: true},
		{name: "a domain that would end its block", files: map[string]string{"stubDomains": `{"a {\n}\n": ["1.2.3.4"]}`}, refused: true},
		{name: "a stub domain without servers", files: map[string]string{"stubDomains": `{"acme.local": []}`}, refused: true},
		{name: "a bad server", files: map[string]string{"stubDomains": `{"acme.local": ["1.2.3.4:dns"]}`}, refused: true},
		{name: "a file for a server", files: map[string]string{"stubDomains": `{"acme.local": ["/etc/resolv.conf"]}`}, refused: true},
		{name: "a name upstream", files: map[string]string{"upstreamNameservers": `["dns.google"]`}, refused: true},
		{name: "four upstream servers", files: map[string]string{"upstreamNameservers": `["1.1.1.1","1.1.1.2","1.1.1.3","1.1.1.4"]`}, refused: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, tc.files)
			got, err := ReadKubeDNS(dir)
			if tc.refused {
				golden.Compare(t, tc.name, strings.ReplaceAll(fmt.Sprint(err), dir, "DIR"))
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestAnOptionalConfigMapIsNotThere(t *testing.T) {
	if got, err := ReadKubeDNS(filepath.Join(t.TempDir(), "kube-dns")); err != nil || len(got.StubDomains) > 0 {
		t.Errorf("%+v, error %v", got, err)
	}
}

// publish makes a directory for the version and moves the link to it, as kubelet's atomic
// writer does.
func publish(t *testing.T, dir, version string, files map[string]string) {
	t.Helper()
	write(t, filepath.Join(dir, version), files)
	if err := os.Symlink(version, filepath.Join(dir, "..data_tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
}

func TestAMountedConfigMapIsOfOneVersion(t *testing.T) {
	dir := t.TempDir()
	one := map[string]string{"stubDomains": `{"one.local": ["1.1.1.1"]}`, "upstreamNameservers": `["1.1.1.1"]`}
	two := map[string]string{"stubDomains": `{"two.local": ["2.2.2.2"]}`, "upstreamNameservers": `["2.2.2.2"]`}
	publish(t, dir, "..one", one)
	publish(t, dir, "..two", two)
	// The links that users see are only looked at through ..data.
	for name := range one {
		if err := os.Symlink(filepath.Join("..one", name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ReadKubeDNS(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := KubeDNS{StubDomains: map[string][]string{"two.local": {"2.2.2.2"}}, UpstreamNameservers: []string{"2.2.2.2"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
