package nodecache

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coredns/caddy/caddyfile"
	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/internal/testgolden"
)

// Each row has the addresses of notrack in every resulting block, in the order of the
// Corefile with its imports.
func TestBlocksThatGetNotrack(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"more.server": "imported.local:53 {\n    bind 169.254.20.10\n    whoami\n}\n"})
	t.Setenv("ZONE", "env.local")
	const both = "169.254.20.10 10.96.0.10"
	for _, tc := range []struct {
		name, corefile string
		want           []string
	}{
		{"one address of two", ".:53 {\n    bind 169.254.20.10\n}\n", []string{"169.254.20.10"}},
		{"two bind lines", ".:53 {\n    bind 169.254.20.10\n    bind 10.96.0.10\n}\n", []string{both}},
		{"everywhere", ".:53 {\n    whoami\n}\n", []string{both}},
		{"the wildcard", ".:53 {\n    bind 0.0.0.0\n}\n", []string{both}},
		{"an interface", ".:53 {\n    bind nodelocaldns\n}\n", []string{both}},
		{"an interface but for one address", ".:53 {\n    bind nodelocaldns {\n        except 10.96.0.10\n    }\n}\n", []string{"169.254.20.10"}},
		{"an address that is not ours", ".:53 {\n    bind 127.0.0.1\n}\n", []string{""}},
		{"a transport without rules", "quic://.:853 {\n    bind 169.254.20.10\n}\n", []string{""}},
		{"DNS over TLS", "tls://.:853 {\n    bind 169.254.20.10\n}\n", []string{"169.254.20.10"}},
		{"several keys", "a.local:53, b.local:53\nc.local:53 {\n    bind 169.254.20.10\n}\n", nil},
		{"keys with commas", "a.local:53,\nb.local:53 {\n    bind 169.254.20.10\n}\n", []string{"169.254.20.10"}},
		{"without braces", "example.org:53\nbind 169.254.20.10\nwhoami\n", []string{"169.254.20.10"}},
		{"without braces and without a newline", "example.org:53\nbind 169.254.20.10", []string{"169.254.20.10"}},
		{"without a newline", ".:53 {\n    bind 169.254.20.10\n}", []string{"169.254.20.10"}},
		{"a directive in the line of the brace", ".:53 { cache {\n        success 10\n    }\n    bind 10.96.0.10\n}\n", []string{"10.96.0.10"}},
		{"two blocks that touch", "a.local {\n    bind 10.96.0.10\n} b.local {\n    bind 169.254.20.10\n}\n", []string{"10.96.0.10", "169.254.20.10"}},
		{"a snippet", "(common) {\n    bind 169.254.20.10\n    errors\n}\n.:53 {\n    import common\n}\n", []string{"169.254.20.10"}},
		{"a nested block", ".:53 {\n    bind 169.254.20.10\n    forward . 10.0.0.1 {\n        force_tcp\n    }\n}\n", []string{"169.254.20.10"}},
		{"comments with braces", "# {\n.:53 { # }\n    bind 169.254.20.10 # {\n}\n", []string{"169.254.20.10"}},
		{"a quoted brace", ".:53 {\n    bind 169.254.20.10\n    template IN A {\n        answer \"a {\n b\"\n    }\n}\n", []string{"169.254.20.10"}},
		{"an imported block keeps to itself", "import more.server\n.:53 {\n    bind 10.96.0.10\n}\n", []string{"", "10.96.0.10"}},
		{"a key of the environment", "{$ZONE}:53 {\n    bind 127.0.0.1\n}\n.:53 {\n    bind 10.96.0.10\n}\n", []string{"", "10.96.0.10"}},
		{"the same zone on two addresses", ".:53 {\n    bind 127.0.0.1\n}\n.:53 {\n    bind 10.96.0.10\n}\n", []string{"", "10.96.0.10"}},
		{"one has a notrack block already", ".:53 {\n    bind 10.96.0.10\n    notrack\n}\na.local {\n    bind 10.96.0.10\n}\n", []string{"notrack", ""}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := mustParse(t)
			path := filepath.Join(dir, "Corefile")
			text, err := o.Insert(path, tc.corefile, nil, false)
			if err != nil {
				t.Fatal(err)
			}
			blocks, err := caddyfile.Parse(path, strings.NewReader(text), nil)
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			if tc.want == nil { // caddy refuses or joins it; the same must come out of both
				before, _ := caddyfile.Parse(path, strings.NewReader(tc.corefile), nil)
				if len(before) != len(blocks) {
					t.Errorf("%d blocks became %d:\n%s", len(before), len(blocks), text)
				}
				return
			}
			var got []string
			for _, b := range blocks {
				got = append(got, listed(b))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s\n%s", diff, text)
			}
		})
	}
}

// listed returns the addresses of a block's notrack line, or the name of the directive if
// there are none.
func listed(b caddyfile.ServerBlock) string {
	var words []string
	for _, token := range b.Tokens["notrack"] {
		if token.Text == "{" {
			break
		}
		if _, err := netip.ParseAddr(token.Text); err == nil {
			words = append(words, token.Text)
		}
	}
	if len(b.Tokens["notrack"]) > 0 && words == nil {
		return "notrack"
	}
	return strings.Join(words, " ")
}

func TestWhoeverAsksIsServed(t *testing.T) {
	o := mustParse(t)
	text, err := o.Insert("Corefile", ".:53 {\n    whoami\n}\n", nil, true)
	if err != nil || !strings.Contains(text, "sources any") {
		t.Errorf("%s, error %v", text, err)
	}
}

func TestABrokenCorefileIsReported(t *testing.T) {
	o := mustParse(t)
	golden := testgolden.NewRows(t, "broken-corefiles.golden")
	_, err := o.Insert("Corefile", ".:53 {\n    whoami\n", nil, false)
	golden.Compare(t, "a block without an end", fmt.Sprint(err))
	o.SetupIPTables = false
	_, err = o.Insert("Corefile", ".:53 {\n    nosuch\n}\n", []string{"whoami"}, false)
	golden.Compare(t, "an unknown directive", fmt.Sprint(err))
}
