package snapshot

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/summary"
)

func small() *Snapshot {
	s := &Snapshot{
		Schema: Schema, Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), WindowSeconds: 10,
		Node:     Node{Name: "worker", BootID: "b", CPUs: 4},
		Counters: []Counter{{Name: "drop", Total: 3, PerSecond: new(0.3), Loss: true}},
		Samples:  []Sample{{Seconds: 0, Entries: 5}, {Seconds: 1, Entries: 6, DNSEntries: new(uint64(2))}},
	}
	s.Table.SetSummary(&summary.Summary{Entries: 8, DNS: summary.DNS{Entries: 2}})
	return s
}

func encode(t *testing.T, s *Snapshot) string {
	t.Helper()
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestReadWhatWasWritten(t *testing.T) {
	want := small()
	got, err := Read(strings.NewReader(encode(t, want)))
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("error %v (-want +got):\n%s", err, diff)
	}
	if p := want.Table.DNSPercent; p == nil || *p != 25 {
		t.Errorf("2 of 8 entries are %v %%", p)
	}
}

func TestReadRefuses(t *testing.T) {
	whole := encode(t, small())
	change := func(old, with string) string {
		changed := strings.Replace(whole, old, with, 1)
		if changed == whole {
			t.Fatalf("no %s in %s", old, whole)
		}
		return changed
	}
	for _, tc := range []struct{ name, text, says string }{
		{"nothing", "", "empty"},
		{"white space", " \n", "empty"},
		{"half of it", whole[:len(whole)/2], "in the middle of the snapshot"},
		{"all but the last byte", whole[:len(whole)-1], "in the middle of the snapshot"},
		{"something behind it", whole + "{}", "no snapshot"},
		{"no JSON", "conntrack v1.4.7", "no snapshot: invalid character"},
		{"a list", "[]", "no snapshot"},
		{"another document", `{"entries": 1, "limit": 2}`, "no field schema"},
		{"another schema", change(Schema, "trackless.comparison/v1"), `its schema is "trackless.comparison/v1"`},
		{"a newer version", change(Schema, "trackless.snapshot/v2"), "newer Trackless"},
		{"a version that is none", change(Schema, "trackless.snapshot/vx"), "its schema is"},
		{"another type", change(`"entries": 5`, `"entries": "five"`), "no snapshot"},
		{"no time", change(`"time": "2026-01-02T03:04:05Z"`, `"time": "0001-01-01T00:00:00Z"`), "when it was taken"},
		{"a negative window", change(`"window_seconds": 10`, `"window_seconds": -1`), "window of -1"},
		{"samples out of order", change(`"seconds": 0`, `"seconds": 7`), "sample 2, at 1 seconds, is out of order"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := Read(strings.NewReader(tc.text))
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v, error %v, want one that says %q", s, err, tc.says)
			}
			if newer := tc.name == "a newer version"; errors.Is(err, ErrNewer) != newer {
				t.Errorf("ErrNewer is in it: %t", !newer)
			}
		})
	}
}

func TestFieldsOfLaterAreLeftOut(t *testing.T) {
	text := strings.Replace(encode(t, small()), "{", `{"later": [1, 2],`, 1)
	if _, err := Read(strings.NewReader(text)); err != nil {
		t.Error(err)
	}
}

func TestCounters(t *testing.T) {
	total := conntrack.CPUStats{Drop: 30, Invalid: 5}
	rise := conntrack.CPUStats{Drop: 20}
	for _, c := range Counters(total, &rise, 10*time.Second) {
		want := map[string][2]float64{"drop": {30, 2}, "invalid": {5, 0}}[c.Name]
		if float64(c.Total) != want[0] || c.PerSecond == nil || *c.PerSecond != want[1] {
			t.Errorf("%+v, want %v", c, want)
		}
	}
	for _, c := range Counters(total, nil, 0) {
		if c.PerSecond != nil {
			t.Errorf("%s has a rate without a window", c.Name)
		}
	}
}

func TestReadNode(t *testing.T) {
	root := t.TempDir()
	for path, text := range map[string]string{
		"proc/sys/kernel/random/boot_id": "0d9c-11\n", "proc/sys/kernel/osrelease": "6.12.1\n", "proc/uptime": "350.25 700.00\n",
	} {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n, err := ReadNode(root, "worker")
	if err != nil || n.BootID != "0d9c-11" || n.Kernel != "6.12.1" || n.UptimeSeconds != 350.25 || n.Name != "worker" || n.CPUs == 0 {
		t.Errorf("%+v, error %v", n, err)
	}
	if _, err := ReadNode(t.TempDir(), "worker"); err == nil || !strings.Contains(err.Error(), "boot_id") {
		t.Errorf("nothing to read: error %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"schema":"trackless.snapshot/v1","time":"2026-01-02T03:04:05Z"}`))
	f.Add([]byte(`{"schema":"trackless.snapshot/v2"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Read(strings.NewReader(string(b)))
		if err != nil {
			return
		}
		// What can be read can be written and read again.
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Read(strings.NewReader(string(text))); err != nil {
			t.Errorf("%v for %s", err, text)
		}
	})
}
