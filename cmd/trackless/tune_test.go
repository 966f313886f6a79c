package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/internal/testgolden"
	"github.com/trackless-dns/trackless/node/advice"
)

func TestTuneNodes(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	a := write("a.json", `{"entries": 250000, "limit": 262144, "summary": {"entries": 1}}`)
	b := write("b.json", `{"table": {"entries": 200000, "limit": 262144}, "rules": {}}`)
	empty := write("empty.json", `{}`)
	text := write("text.json", `250000 of 262144`)
	unlimited := write("unlimited.json", `{"entries": 5, "limit": 0}`)

	out, errs, code := trackless("tune", "--nodes", a, b, "-o", "json")
	var c advice.NodeCount
	if err := json.Unmarshal([]byte(out), &c); err != nil || code != 0 || c.Nodes != 2 || c.Entries != 450000 || c.Needed != 3 {
		t.Errorf("exit status %d, %+v, %v, %s", code, c, err, errs)
	}
	out, _, _ = trackless("tune", "--nodes", a, b)
	if !strings.Contains(out, "3 nodes of that limit would be 57 % full") {
		t.Errorf("%s", out)
	}
	golden := testgolden.NewRows(t, "refused-tune.golden", dir, "DIR")
	for _, test := range []struct {
		args []string
	}{
		{[]string{"--nodes"}},
		{[]string{"--nodes", empty}},
		{[]string{"--nodes", text}},
		{[]string{"--nodes", unlimited}},
		{[]string{"--nodes", filepath.Join(dir, "none")}},
		{[]string{a}},
		{[]string{"--for", "systemd"}},
		{[]string{"--apply", "--revert"}},
		{[]string{"-o", "yaml"}},
		{[]string{"--faster"}},
		{[]string{"--root", dir}},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			out, errs, code := trackless(append([]string{"tune"}, test.args...)...)
			if code != cli.ExitCannotMeasure || out != "" {
				t.Errorf("exit status %d\n%s%s", code, out, errs)
			}
			golden.Compare(t, strings.Join(test.args, " "), errs)
		})
	}
}
