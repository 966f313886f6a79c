package main

import (
	"bytes"
	"encoding/json"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

func TestVersion(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"version"}, {"--version"}} {
		if got := printed(t, args...); !strings.HasPrefix(got, "trackless "+version+" (commit ") || !strings.Contains(got, runtime.Version()) {
			t.Errorf("trackless %s: %q lacks version, commit or Go", args[0], got)
		}
	}
	var got versions
	if err := json.Unmarshal([]byte(printed(t, "version", "-o", "json")), &got); err != nil {
		t.Fatal(err)
	}
	want := versions{Version: version, Commit: got.Commit, CoreDNS: coreDNSVersion(), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if got != want || got.Commit == "" {
		t.Errorf("%+v, want %+v with a commit", got, want)
	}
}

func TestCommitOfGoBuild(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		settings []debug.BuildSetting
		want     string
	}{
		{"no git", nil, ""},
		{"clean", []debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.modified", Value: "false"}}, "abc"},
		{"changed files", []debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.modified", Value: "true"}}, "abc-dirty"},
	} {
		if got := commitOf(&debug.BuildInfo{Settings: test.settings}); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// printed is what a verb writes to its standard output.
func printed(t *testing.T, args ...string) string {
	t.Helper()
	root := rootCommand()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetArgs(args)
	if err := root.Execute(); err != nil {
		t.Fatalf("trackless %s: %v", strings.Join(args, " "), err)
	}
	return out.String()
}
