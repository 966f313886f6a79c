package support

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/node/redact"
	"github.com/trackless-dns/trackless/node/snapshot"
)

func TestBundle(t *testing.T) {
	made := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	for name, want := range map[string]string{
		"worker-7.example.com": "trackless-support-worker-7.example.com-20260102T030405Z.tar.gz",
		"../../etc/a b":        "trackless-support-etc-a-b-20260102T030405Z.tar.gz",
		"":                     "trackless-support-node-20260102T030405Z.tar.gz",
	} {
		if got := New(snapshot.Node{Name: name}, "development", made).FileName(); got != want {
			t.Errorf("node %q gives %s, want %s", name, got, want)
		}
	}

	write := func() string {
		b := New(snapshot.Node{Name: "worker"}, "development", made, "log")
		// The second part shows that what the first holds is a secret.
		b.Add("", "first.txt", "", func() ([]byte, error) { return []byte("logged in with plantedvalue"), nil })
		b.Add("", "second.json", "", func() ([]byte, error) { return []byte(`{"a": "password=plantedvalue"}`), nil })
		b.Add("", "third.txt", "", func() ([]byte, error) { return nil, errors.New("refused: token=plantedtoken") })
		b.Add("log", "fourth.txt", "", func() ([]byte, error) { t.Error("it was asked for"); return nil, nil })
		b.Add("", "fifth.txt", "", func() ([]byte, error) { return []byte("half of it"), errors.New("and then it broke") })
		var out bytes.Buffer
		if err := b.Write(&out, false); err != nil {
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
	for _, want := range []string{"logged in with " + redact.LeftOut, "refused: token=" + redact.LeftOut, "left out by --without", "half of it", "and then it broke", `"secrets_left_out": 3`} {
		if !strings.Contains(text, want) {
			t.Errorf("it lacks %q", want)
		}
	}
}
