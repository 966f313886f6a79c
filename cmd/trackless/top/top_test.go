package top

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

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

// play sends messages to a screen, keys as their names, and returns what it shows.
func play(width, height int, keys string, readings ...Reading) []string {
	var m tea.Model = Screen{Node: "node-1", Interval: 2 * time.Second}
	m, _ = m.Update(tea.WindowSizeMsg{Width: width, Height: height})
	for _, r := range readings[:min(1, len(readings))] {
		m, _ = m.Update(r)
	}
	for key := range strings.FieldsSeq(keys) {
		m, _ = m.Update(press(key))
	}
	for _, r := range readings[min(1, len(readings)):] {
		m, _ = m.Update(r)
	}
	return strings.Split(m.View().Content, "\n")
}

func press(key string) tea.KeyPressMsg {
	codes := map[string]rune{
		"tab": tea.KeyTab, "enter": tea.KeyEnter, "esc": tea.KeyEscape, "space": tea.KeySpace,
		"backspace": tea.KeyBackspace, "down": tea.KeyDown, "up": tea.KeyUp, "pgdown": tea.KeyPgDown, "home": tea.KeyHome,
	}
	if code, ok := codes[key]; ok {
		return tea.KeyPressMsg{Code: code}
	}
	return tea.KeyPressMsg{Code: rune(key[0]), Text: key}
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
		{"no longer frozen", 80, 24, "space space", []Reading{reading(), later}},
		{"nine lines, scrolled", 80, 9, "down down", []Reading{reading()}},
		{"scrolled too far", 80, 9, "pgdown pgdown pgdown down down down down down down", []Reading{reading()}},
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
	for key, want := range map[string]bool{"q": true, "esc": true, "s": false} {
		_, command := Screen{}.Update(press(key))
		if (command != nil) != want {
			t.Errorf("%s ends: %t, want %t", key, command != nil, want)
		}
	}
	// While a filter is typed, letters are text.
	_, command := Screen{typing: true}.Update(press("q"))
	if command != nil {
		t.Error("a q in a filter ends the screen")
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
