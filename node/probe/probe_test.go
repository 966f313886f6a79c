package probe

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestServersOf(t *testing.T) {
	for _, tc := range []struct {
		name, file string
		want       []string
		ok         bool
	}{
		{"one", "nameserver 127.0.0.1\n", []string{"127.0.0.1:53"}, true},
		{"both families", "search example.org\nnameserver 10.96.0.10\nnameserver fd00::a\n", []string{"10.96.0.10:53", "[fd00::a]:53"}, true},
		{"none", "search example.org\n", nil, false},
		{"a name", "nameserver here\n", nil, false},
	} {
		path := filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(path, []byte(tc.file), 0o600); err != nil {
			t.Fatal(err)
		}
		servers, err := ServersOf(path)
		var got []string
		for _, s := range servers {
			got = append(got, s.String())
		}
		if (err == nil) != tc.ok || !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, error %v", tc.name, got, err)
		}
	}
	if _, err := ServersOf(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there has servers")
	}
}

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{"example.org": true, "off": true, "example.org.": true, "": false, "a b": false, "a..b": false} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// Where nobody listens both transports fail, and each says so.
func TestNobodyAnswers(t *testing.T) {
	r := DNS(t.Context(), []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}, "example.org", dns.TypeAAAA, time.Second)
	if r.OK || r.Name != "example.org." || r.Type != "AAAA" || len(r.Answers) != 2 || len(r.Failures()) != 2 {
		t.Errorf("%+v", r)
	}
}
