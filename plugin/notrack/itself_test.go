package notrack

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coredns/caddy/caddyfile"
	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
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
			for _, target := range targetsOf(blocks[0].Tokens) {
				got = append(got, fmt.Sprintf("%s %s", target.server, target.words))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestListensAt(t *testing.T) {
	t.Parallel()
	listen := []iptables.Endpoint{{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.UDP}}
	testns.New(t).Do(func() {
		resolved, err := net.ListenPacket("udp", "127.0.0.53:53")
		if err != nil {
			t.Error(err)
			return
		}
		defer resolved.Close()
		for _, tc := range []struct {
			name, server string
			everywhere   bool
			want         bool
		}{
			{"a listen address", "10.96.0.10:53", false, true},
			{"another port of it", "10.96.0.10:5353", false, false},
			{"another address", "10.96.0.99:53", false, false},
			{"a local one, of a socket for all", "127.0.0.1:53", true, true},
			{"a local one, of sockets for some", "127.0.0.1:53", false, false},
			{"a local one that somebody else has", "127.0.0.53:53", true, false},
			{"a remote one, of a socket for all", "192.0.2.53:53", true, false},
		} {
			if got := listensAt(listen, tc.everywhere, netip.MustParseAddrPort(tc.server)); got != tc.want {
				t.Errorf("%s: %t, want %t", tc.name, got, tc.want)
			}
		}
	})
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
