package host

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/node/advice"
)

func TestSavedTables(t *testing.T) {
	const saved = "flush ruleset\ntable ip nat {\n}\ntable inet trackless-1d1063ae { # progname trackless\n\tflags owner\n}\n"
	for _, test := range []struct {
		name  string
		files map[string]string
		want  []advice.SavedTable
	}{
		{"no file", nil, nil},
		{"others' tables", map[string]string{"etc/nftables.conf": "#!/usr/sbin/nft -f\n# table inet trackless-1 was here\ntable inet filter { # not inet trackless-1\n}\n"}, nil},
		{"a saved ruleset", map[string]string{"etc/nftables.conf": saved}, []advice.SavedTable{{Path: "/etc/nftables.conf", Line: 4, Table: "trackless-1d1063ae"}}},
		{"named twice", map[string]string{"etc/nftables.conf": "add table inet trackless-a\nadd chain inet trackless-a c\n"}, []advice.SavedTable{{Path: "/etc/nftables.conf", Line: 1, Table: "trackless-a"}}},
		{"included by name", map[string]string{"etc/nftables.conf": "include \"/etc/nftables/main.nft\"\n", "etc/nftables/main.nft": saved},
			[]advice.SavedTable{{Path: "/etc/nftables/main.nft", Line: 4, Table: "trackless-1d1063ae"}}},
		{"included below /etc, by wildcard", map[string]string{"etc/sysconfig/nftables.conf": "include 'nftables.d/*.nft'\n", "etc/nftables.d/a.nft": "", "etc/nftables.d/b.nft": saved},
			[]advice.SavedTable{{Path: "/etc/nftables.d/b.nft", Line: 4, Table: "trackless-1d1063ae"}}},
		{"included by an included file", map[string]string{"etc/nftables.conf": "include \"a\"\n", "etc/a": "  include \"b\"\n", "etc/b": saved},
			[]advice.SavedTable{{Path: "/etc/b", Line: 4, Table: "trackless-1d1063ae"}}},
		{"including itself", map[string]string{"etc/nftables.conf": "include \"nftables.conf\"\n" + saved},
			[]advice.SavedTable{{Path: "/etc/nftables.conf", Line: 5, Table: "trackless-1d1063ae"}}},
		{"not included", map[string]string{"etc/nftables.conf": "", "etc/nftables.d/b.nft": saved}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, SavedTables(plant(t, test.files), "trackless-")); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}
