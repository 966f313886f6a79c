package top

import (
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/trackless-dns/trackless/conntrack/groups"
	"github.com/trackless-dns/trackless/internal/testgolden"
)

func row(name string, entries, unreplied, dns, isNew uint64) groups.Row {
	return groups.Row{Name: name, Counts: groups.Counts{Entries: entries, Unreplied: unreplied, DNS: dns, New: isNew}}
}

func reading() Reading {
	avoided := uint64(48_120)
	return Reading{
		At: time.Date(2026, 1, 2, 13, 14, 15, 0, time.UTC), Entries: 131_072, Limit: 262_144,
		Total: groups.Counts{Entries: 130_900, Unreplied: 41_006, DNS: 52_900, New: 2_468}, Per: 2 * time.Second,
		Avoided: &avoided, Names: "names from the Kubernetes API",
		Rows: map[groups.By][]groups.Row{
			groups.Pod: {
				row("shop/checkout-6d5f9c7b8d-x2x7k", 90_000, 40_000, 52_000, 2_400),
				row("shop/a-stateful-set-with-an-uncommonly-long-name-for-its-pods-0", 40_000, 1_000, 100, 60),
				row("(node)", 800, 5, 800, 0),
				row("kube-system/metrics-server-5b4fc487b4-2vwzq", 99, 0, 0, 7),
				row("2001:db8:1234:5678:9abc:def0:1234:5678", 1, 1, 0, 1),
			},
			groups.Namespace: {row("shop", 130_000, 41_000, 52_100, 2_460), row("(node)", 800, 5, 800, 0), row("kube-system", 99, 0, 0, 7), row("(no pod)", 1, 1, 0, 1)},
		},
	}
}

// play gives readings and keys to a screen, and returns what it shows.
func play(width, height int, keys string, readings ...Reading) []string {
	s := OfTable(groups.Pod)
	s.Node, s.Interval = "node-1", 2*time.Second
	s = s.Sized(width, height)
	for _, r := range readings[:min(1, len(readings))] {
		s = s.With(r.Page())
	}
	for key := range strings.FieldsSeq(keys) {
		if key == "space" {
			key = " "
		}
		s, _ = s.Press(key)
	}
	for _, r := range readings[min(1, len(readings)):] {
		s = s.With(r.Page())
	}
	return s.Lines()
}

func TestScreen(t *testing.T) {
	golden := testgolden.NewRows(t, "screens.golden")
	broken := reading()
	broken.Problem = "gave up after 3 attempts, the numbers are near: the table was rebuilt while it was read"
	unlimited := reading()
	unlimited.Limit, unlimited.Per, unlimited.Avoided = 0, 0, nil
	later := reading()
	later.At, later.Entries = later.At.Add(2*time.Second), 200_000
	for _, tc := range []struct {
		name          string
		width, height int
		keys          string
		readings      []Reading
	}{
		{"60 columns", 60, 24, "", []Reading{reading()}},
		{"100 columns", 100, 24, "", []Reading{reading()}},
		{"200 columns", 200, 24, "", []Reading{reading()}},
		{"30 columns", 30, 24, "", []Reading{reading()}},
		{"before the first reading", 80, 24, "", nil},
		{"the first reading, no limit, nobody avoids", 100, 24, "", []Reading{unlimited}},
		{"by namespace", 80, 24, "tab", []Reading{reading()}},
		{"by new entries", 80, 24, "s", []Reading{reading()}},
		{"filtered while typing", 80, 24, "/ S H O P x backspace", []Reading{reading()}},
		{"filtered", 80, 24, "/ s h o p enter", []Reading{reading()}},
		{"the filter is taken back", 80, 24, "/ s h o p esc", []Reading{reading()}},
		{"frozen", 80, 24, "space", []Reading{reading(), later}},
		{"no longer frozen", 80, 24, strings.Repeat("space ", 2), []Reading{reading(), later}},
		{"nine lines, scrolled", 80, 9, strings.Repeat("down ", 2), []Reading{reading()}},
		{"scrolled too far", 80, 9, strings.Repeat("pgdown ", 3) + strings.Repeat("down ", 6), []Reading{reading()}},
		{"a table that was rebuilt", 80, 24, "", []Reading{broken}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			lines := play(tc.width, tc.height, tc.keys, tc.readings...)
			for _, line := range lines {
				if n := utf8.RuneCountInString(line); n > tc.width {
					t.Errorf("%d columns: %q", n, line)
				}
			}
			if len(lines) > tc.height {
				t.Errorf("%d lines, of %d", len(lines), tc.height)
			}
			golden.Compare(t, tc.name, strings.Join(lines, "\n")+"\n")
		})
	}
}

func TestQuit(t *testing.T) {
	for key, want := range map[string]bool{"q": true, "esc": true, "ctrl+c": true, "s": false} {
		if _, quit := OfTable(groups.Pod).Press(key); quit != want {
			t.Errorf("%s ends: %t, want %t", key, quit, want)
		}
	}
	// While a filter is typed, letters are text.
	if _, quit := (Screen{typing: true}).Press("q"); quit {
		t.Error("a q in a filter ends the screen")
	}
}

// No line is cleared after it was written: a terminal whose last column is written would
// clear that. Below the last line there may be no other.
func TestFrame(t *testing.T) {
	for _, tc := range []struct {
		name, want string
		height     int
	}{
		{"lines below", "\x1b[H\x1b[Kab\r\n\x1b[Kc\r\n\x1b[J", 3},
		{"a full screen", "\x1b[H\x1b[Kab\r\n\x1b[Kc", 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := frame([]string{"ab", "c"}, tc.height); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

func TestKeys(t *testing.T) {
	for _, tc := range []struct {
		name, input string
		final       bool
		keys        []string
		rest        string
	}{
		{"letters", "qs/ä 1", false, []string{"q", "s", "/", "ä", " ", "1"}, ""},
		{"control characters", "\t\r\x7f\b\x03\x01", false, []string{"tab", "enter", "backspace", "backspace", "ctrl+c"}, ""},
		{"cursor keys", "\x1b[A\x1b[B\x1b[C\x1b[D", false, []string{"up", "down", "right", "left"}, ""},
		{"cursor keys of the application mode", "\x1bOA\x1bOBj", false, []string{"up", "down", "j"}, ""},
		{"keys with a number", "\x1b[5~\x1b[6~\x1b[1~\x1b[Z", false, []string{"pgup", "pgdown", "home", "shift+tab"}, ""},
		{"a key that means nothing here", "\x1b[15~s\x1b[1;5Aq", false, []string{"s", "q"}, ""},
		{"ESC may begin a key", "s\x1b", false, []string{"s"}, "\x1b"},
		{"a key that is half there", "\x1b[5", false, nil, "\x1b[5"},
		{"ESC after a while", "\x1b", true, []string{"esc"}, ""},
		{"half a key after a while", "\x1b[5", true, nil, ""},
		{"ESC before a letter", "\x1bq", false, []string{"esc", "q"}, ""},
		{"half a character", "\xc3", false, nil, "\xc3"},
		{"no character", "\xffq", false, []string{"q"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			keys, rest := keysOf([]byte(tc.input), tc.final)
			if !slices.Equal(keys, tc.keys) || string(rest) != tc.rest {
				t.Errorf("%q and the rest %q, want %q and %q", keys, rest, tc.keys, tc.rest)
			}
		})
	}
}

// All columns are there without a terminal, and NEW/s only where it is known.
func TestTableOfAnyWidth(t *testing.T) {
	table := Table{By: groups.Pod, Rows: reading().Rows[groups.Pod]}
	if got := strings.Fields(table.Lines(0)[0]); strings.Join(got, " ") != "POD ENTRIES OF LIMIT UNREPLIED DNS" {
		t.Errorf("%q", got)
	}
	table.Per = time.Second
	if got := strings.Fields(table.Lines(0)[0]); strings.Join(got, " ") != "POD ENTRIES OF LIMIT NEW/s UNREPLIED DNS" {
		t.Errorf("%q", got)
	}
}
