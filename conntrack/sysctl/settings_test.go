package sysctl_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
)

// plant writes files below a new root.
func plant(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const netfilter = "proc/sys/net/netfilter/"

func TestReadSettings(t *testing.T) {
	root := plant(t, map[string]string{
		netfilter + "nf_conntrack_max":                     "131072\n",
		netfilter + "nf_conntrack_buckets":                 "65536\n",
		netfilter + "nf_conntrack_expect_max":              "1024\n",
		netfilter + "nf_conntrack_tcp_timeout_established": "86400\n",
		"proc/meminfo":                      "MemTotal:        8000000 kB\nMemFree: 1 kB\n",
		"usr/lib/sysctl.d/50-vendor.conf":   "net.netfilter.nf_conntrack_max = 100\n",
		"usr/lib/sysctl.d/60-hidden.conf":   "net.netfilter.nf_conntrack_max = 200\n",
		"etc/sysctl.d/60-hidden.conf":       "# nothing\n",
		"etc/sysctl.d/10-early.conf":        "; a comment\n\n-net/netfilter/nf_conntrack_max=300\n",
		"etc/sysctl.d/README":               "net.netfilter.nf_conntrack_max = 400\n",
		"etc/sysctl.conf":                   "net.nf_conntrack_max = 500\nnot an assignment\n",
		"usr/lib/sysctl.d/10-est.conf":      "net.netfilter.nf_conntrack_tcp_timeout_established = 86400\n",
		"usr/local/lib/sysctl.d/nothing.md": "",
	})
	settings, err := sysctl.ReadSettings(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(settings) != 4 {
		t.Errorf("%d settings, want the 4 that there are", len(settings))
	}
	limit := settings[0]
	if limit.Value != 131072 || limit.Default == nil || *limit.Default != 262144 || limit.KubeProxy == "" {
		t.Errorf("limit %+v", limit)
	}
	want := []sysctl.SettingFile{
		{Path: "/etc/sysctl.d/10-early.conf", Line: 3, Value: "300"},
		{Path: "/usr/lib/sysctl.d/50-vendor.conf", Line: 1, Value: "100"},
		{Path: "/etc/sysctl.conf", Line: 1, Value: "500"},
	}
	if !slices.Equal(limit.Files, want) {
		t.Errorf("files %+v\nwant  %+v", limit.Files, want)
	}
	if v, ok := sysctl.SettingValue(settings, "nf_conntrack_expect_max"); !ok || v != 1024 || *settings[2].Default != 1024 {
		t.Errorf("expectations %+v", settings[2])
	}
	if _, err := sysctl.ReadSettings(t.TempDir()); !errors.Is(err, conntrack.ErrUnavailable) {
		t.Errorf("without connection tracking: %v, want ErrUnavailable", err)
	}
}

// net.nf_conntrack_max is the same variable: the line read last wins, by
// whatever name.
func TestSettingAliases(t *testing.T) {
	for _, test := range []struct {
		name        string
		first, last string
	}{
		{"old name first", "net.nf_conntrack_max", "net.netfilter.nf_conntrack_max"},
		{"old name last", "net.netfilter.nf_conntrack_max", "net.nf_conntrack_max"},
		{"with slashes", "net/netfilter/nf_conntrack_max", "-net/nf_conntrack_max"},
	} {
		t.Run(test.name, func(t *testing.T) {
			settings, err := sysctl.ReadSettings(plant(t, map[string]string{
				netfilter + "nf_conntrack_max": "1\n",
				"etc/sysctl.d/10-a.conf":       test.first + " = 111\n",
				"etc/sysctl.d/90-b.conf":       test.last + " = 222\n",
			}))
			if err != nil {
				t.Fatal(err)
			}
			want := []sysctl.SettingFile{{Path: "/etc/sysctl.d/10-a.conf", Line: 1, Value: "111"}, {Path: "/etc/sysctl.d/90-b.conf", Line: 1, Value: "222"}}
			if !slices.Equal(settings[0].Files, want) {
				t.Errorf("files %+v, want %+v", settings[0].Files, want)
			}
		})
	}
}

// The hash is sized when the module is loaded, by files in the order of their
// names, and again by sysctl.
func TestBucketFiles(t *testing.T) {
	settings, err := sysctl.ReadSettings(plant(t, map[string]string{
		netfilter + "nf_conntrack_max":        "1\n",
		netfilter + "nf_conntrack_buckets":    "1\n",
		"etc/modprobe.d/10-a.conf":            "options nf_conntrack hashsize=1\n",
		"usr/lib/modprobe.d/90-b.conf":        "# no comment\noptions nf-conntrack acct=1 hashsize=2\n",
		"usr/lib/modprobe.d/10-a.conf":        "options nf_conntrack hashsize=9\n",
		"usr/lib/modprobe.d/50-c.conf":        "options other hashsize=9\n",
		"etc/sysctl.d/10-buckets.conf":        "net.netfilter.nf_conntrack_buckets = 3\n",
		"run/modprobe.d/README":               "options nf_conntrack hashsize=9\n",
		"usr/local/lib/modprobe.d/20-e.conf":  "options nf_conntrack\n",
		"usr/local/lib/modprobe.d/nothing.md": "",
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := []sysctl.SettingFile{
		{Path: "/etc/modprobe.d/10-a.conf", Line: 1, Value: "1"},
		{Path: "/usr/lib/modprobe.d/90-b.conf", Line: 2, Value: "2"},
		{Path: "/etc/sysctl.d/10-buckets.conf", Line: 1, Value: "3"},
	}
	if !slices.Equal(settings[1].Files, want) {
		t.Errorf("files %+v, want %+v", settings[1].Files, want)
	}
}

func TestDefaultLimitByMemory(t *testing.T) {
	for _, test := range []struct {
		name, meminfo string
		want          uint64
	}{
		{"24 GB", "MemTotal: 24684432 kB\n", 262144},
		{"2 GB", "MemTotal: 2000000 kB\n", 65536},
		{"512 MB", "MemTotal: 524288 kB\n", 4096},
		{"64 MB", "MemTotal: 65536 kB\n", 1024},
	} {
		t.Run(test.name, func(t *testing.T) {
			settings, err := sysctl.ReadSettings(plant(t, map[string]string{
				netfilter + "nf_conntrack_max": "1", "proc/meminfo": test.meminfo,
			}))
			if err != nil {
				t.Fatal(err)
			}
			if got := settings[0].Default; got == nil || *got != test.want {
				t.Errorf("default %v, want %d", got, test.want)
			}
		})
	}
}

func TestReadMemory(t *testing.T) {
	for _, test := range []struct {
		name  string
		files map[string]string
		want  uint64
		from  string
	}{
		{"slabinfo", map[string]string{
			"proc/slabinfo": "slabinfo - version: 2.1\nnf_conntrack_expect 0 0 208 19 1\nnf_conntrack 100 120 320 25 2 : tunables 0 0 0\n",
		}, 8192 / 25, "slabinfo"},
		{"sysfs", map[string]string{"sys/kernel/slab/nf_conntrack/slab_size": "320\n"}, 320, "sysfs"},
		{"neither", nil, 256, "typical"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := sysctl.ReadMemory(plant(t, test.files))
			if m.EntryBytes != test.want || m.Source != test.from {
				t.Errorf("%+v, want %d from %s", m, test.want, test.from)
			}
			if got := m.Table(10, 4); got != 10*(test.want+128)+32 {
				t.Errorf("Table(10, 4) = %d", got)
			}
		})
	}
}
