package corefile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coredns/caddy/caddyfile"
	"github.com/google/go-cmp/cmp"
)

func TestTargets(t *testing.T) {
	t.Setenv("KUBE_DNS_SERVICE_HOST", "10.96.0.10")
	t.Setenv("KUBE_DNS_UPSTREAM_SERVICE_HOST", "10.96.0.99")
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("search example.org\nnameserver 169.254.25.10\nnameserver fd00::a\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, text string
		want       []string
	}{
		{"addresses", "forward . 10.96.0.10 10.96.0.99:5353", []string{"10.96.0.10:53 forward . 10.96.0.10", "10.96.0.99:5353 forward . 10.96.0.99:5353"}},
		{"with a transport", "forward . tls://10.96.0.10 {\n tls_servername 192.0.2.1\n}", []string{"10.96.0.10:853 forward . tls://10.96.0.10"}},
		{"options are no servers", "forward . 10.96.0.10 {\n except 10.96.0.11\n expire 10s\n}", []string{"10.96.0.10:53 forward . 10.96.0.10"}},
		{"several", "forward a.org 10.96.0.1\nforward b.org 10.96.0.2", []string{"10.96.0.1:53 forward a.org 10.96.0.1", "10.96.0.2:53 forward b.org 10.96.0.2"}},
		{"a file", "forward . " + file, []string{"169.254.25.10:53 forward . " + file + " (169.254.25.10)", "[fd00::a]:53 forward . " + file + " (fd00::a)"}},
		{"a Service", "upstream service kube-system/kube-dns {\n fallback 10.96.0.7\n}", []string{"10.96.0.10:53 upstream service kube-system/kube-dns (10.96.0.10)", "10.96.0.7:53 upstream … fallback 10.96.0.7"}},
		{"endpoints are no Service", "upstream endpoints kube-system/kube-dns", nil},
		{"none", "whoami", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			blocks, err := caddyfile.Parse("Corefile", strings.NewReader(".:53 {\n"+tc.text+"\n}\n"), nil)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, target := range Targets(blocks[0].Tokens) {
				got = append(got, fmt.Sprintf("%s %s", target.Server, target.Words))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestEndpointsOf(t *testing.T) {
	for word, want := range map[string]string{
		"10.96.0.99":          "10.96.0.99:53",
		"10.96.0.99:5353":     "10.96.0.99:5353",
		"tls://1.1.1.1":       "1.1.1.1:853",
		"dns://[fd00::1]:53":  "[fd00::1]:53",
		"fe80::1%eth0":        "[fe80::1]:53",
		".":                   "",
		"force_tcp":           "",
		"tls_servername":      "",
		"10.in-addr.arpa":     "",
		"/no/such/file":       "",
		"testdata/resolv.txt": "192.0.2.53:53",
	} {
		got := ""
		if list := endpointsOf(word); len(list) > 0 {
			got = list[0].String()
		}
		if got != want {
			t.Errorf("%q is %q, want %q", word, got, want)
		}
	}
}

func TestForwards(t *testing.T) {
	t.Setenv("KUBE_DNS_SERVICE_HOST", "10.96.0.10")
	t.Setenv("KUBE_DNS_UPSTREAM_SERVICE_HOST", "10.96.0.99")
	const text = `a {
 notrack
 forward . 10.96.0.1 10.96.0.2
}
b {
 notrack
 upstream endpoints kube-system/kube-dns {
  fallback 10.96.0.7
 }
}
c {
 forward . 10.96.0.3
}
`
	blocks, err := caddyfile.Parse("Corefile", strings.NewReader(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	const want = "[10.96.0.1:53 10.96.0.2:53 10.96.0.99:53 10.96.0.10:53 10.96.0.7:53]"
	if got := fmt.Sprint(Forwards(blocks, "notrack")); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// The smallest max_concurrent of all blocks holds.
func TestMaxConcurrent(t *testing.T) {
	for text, want := range map[string]int{
		"a {\nforward . 10.96.0.99\n}": 0,
		"a {\nforward . 10.96.0.99 {\nmax_concurrent 1000\nprefer_udp\n}\n}\nb {\nupstream . service kube-dns {\nmax_concurrent 500\n}\n}": 500,
		"a {\nforward . 10.96.0.99 {\nmax_concurrent 0\n}\nforward b 10.96.0.98 {\nmax_concurrent 2000\n}\n}":                              2000,
	} {
		blocks, err := caddyfile.Parse("Corefile", strings.NewReader(text), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := MaxConcurrent(blocks); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}
