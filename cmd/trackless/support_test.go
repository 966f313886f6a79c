package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack/snapshot"
)

func TestSupportBundleRefuses(t *testing.T) {
	for _, tc := range []struct {
		args string
		code int
		says string
	}{
		{"--without passwords", cli.ExitUsage, "there are snapshot, doctor, limits, rules, corefile, log"},
		{"--window -1s", cli.ExitUsage, "--window -1s"},
		{"bundle.tar", cli.ExitUsage, "unexpected argument"},
		{"--window 0 --without doctor -o " + filepath.Join(t.TempDir(), "none", "b.tar"), cli.ExitFailure, "no such file"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			out, errs, code := trackless(append([]string{"support-bundle"}, strings.Fields(tc.args)...)...)
			if code != tc.code || !strings.Contains(errs, tc.says) || out != "" {
				t.Errorf("exit status %d, want %d\n%s%s", code, tc.code, out, errs)
			}
		})
	}
}

func TestBundle(t *testing.T) {
	made := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	for name, want := range map[string]string{
		"worker-7.example.com": "trackless-support-worker-7.example.com-20260102T030405Z.tar.gz",
		"../../etc/a b":        "trackless-support-etc-a-b-20260102T030405Z.tar.gz",
		"":                     "trackless-support-node-20260102T030405Z.tar.gz",
	} {
		if got := newBundle(snapshot.Node{Name: name}, made).fileName(); got != want {
			t.Errorf("node %q gives %s, want %s", name, got, want)
		}
	}

	write := func() string {
		b := newBundle(snapshot.Node{Name: "worker"}, made)
		b.without = []string{"log"}
		// The second part shows that what the first holds is a secret.
		b.add("", "first.txt", "", func() ([]byte, error) { return []byte("logged in with plantedvalue"), nil })
		b.add("", "second.json", "", func() ([]byte, error) { return []byte(`{"a": "password=plantedvalue"}`), nil })
		b.add("", "third.txt", "", func() ([]byte, error) { return nil, errors.New("refused: token=plantedtoken") })
		b.add("log", "fourth.txt", "", func() ([]byte, error) { t.Error("it was asked for"); return nil, nil })
		b.add("", "fifth.txt", "", func() ([]byte, error) { return []byte("half of it"), errors.New("and then it broke") })
		var out bytes.Buffer
		if err := b.write(&out, false); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	text := write()
	if text != write() {
		t.Error("the same parts give another file")
	}
	if strings.Contains(text, "planted") {
		t.Errorf("a secret is in it:\n%s", text)
	}
	for _, want := range []string{"logged in with " + leftOut, "refused: token=" + leftOut, "left out by --without", "half of it", "and then it broke", `"secrets_left_out": 3`} {
		if !strings.Contains(text, want) {
			t.Errorf("it lacks %q", want)
		}
	}
}

func TestBundleToStandardOutput(t *testing.T) {
	out, errs, code := trackless("support-bundle", "--window", "0", "--without", "doctor", "-o", "-")
	if code != 0 || !strings.HasPrefix(out, "\x1f\x8b") || strings.Contains(errs, "Look at it") {
		t.Errorf("exit status %d, %d bytes: %s", code, len(out), errs)
	}
	if found, _ := filepath.Glob("trackless-support-*"); len(found) > 0 {
		t.Errorf("it wrote %v too", found)
		for _, name := range found {
			_ = os.Remove(name)
		}
	}
}
