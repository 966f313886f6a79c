package cli

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Where a terminal is too narrow the running text stands below its row, and
// nothing is lost.
func TestTextTable(t *testing.T) {
	table := TextTable{Header: []string{"NAME", "VALUE", "SET BY", "MEANING"}, Text: 2}
	table.Add("nf_conntrack_max", "262144", "/etc/sysctl.d/90-trackless-conntrack.conf:2", "entries a namespace may have before it drops packets of new flows")
	table.Add("nf_conntrack_acct", "0", "-", "count packets")
	for _, test := range []struct {
		name   string
		width  int
		lines  int
		inOne  string // on one line
		before string // on a line of its own
	}{
		{"no terminal", 0, 3, "nf_conntrack_acct  0       -", ""},
		{"wide", 200, 3, "nf_conntrack_acct  0       -", ""},
		{"80 columns", 80, 6, "nf_conntrack_acct  0", "    meaning: count packets"},
		{"40 columns", 40, 9, "nf_conntrack_acct  0", "    meaning: count packets"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var b bytes.Buffer
			table.Write(&b, test.width)
			lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
			found := test.before == ""
			for _, line := range lines {
				// A path cannot be broken.
				if test.width > 0 && utf8.RuneCountInString(line) > test.width && !strings.Contains(line, "/etc/") {
					t.Errorf("%d columns: %q", utf8.RuneCountInString(line), line)
				}
				found = found || line == test.before
			}
			if len(lines) != test.lines || !found || !strings.Contains(b.String(), test.inOne) {
				t.Errorf("%d lines, want %d\n%s", len(lines), test.lines, b.String())
			}
			words := strings.Fields(b.String())
			for _, word := range strings.Fields("before it drops packets of new flows") {
				if !strings.Contains(strings.Join(words, " "), word) {
					t.Errorf("%q is lost", word)
				}
			}
		})
	}
}

func TestTerminalWidth(t *testing.T) {
	t.Parallel()
	if width := TerminalWidth(new(bytes.Buffer)); width != 0 {
		t.Errorf("a buffer has %d columns", width)
	}
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no terminal: %v", err)
	}
	defer func() { _ = terminal.Close() }()
	if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 72}); err != nil {
		t.Fatal(err)
	}
	if width := TerminalWidth(terminal); width != 72 {
		t.Errorf("%d columns, want 72", width)
	}
	if width := TextWidth(terminal); width != 72 {
		t.Errorf("text of %d columns, want 72", width)
	}
	if width := TextWidth(new(bytes.Buffer)); width != ReadableWidth {
		t.Errorf("text of %d columns, want %d", width, ReadableWidth)
	}
}

func TestColourNeedsATerminalThatCan(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no terminal: %v", err)
	}
	defer func() { _ = terminal.Close() }()
	for _, test := range []struct {
		term, noColor string
		want          bool
	}{
		{"xterm", "", true},
		{"dumb", "", false},
		{"xterm", "1", false},
	} {
		t.Setenv("TERM", test.term)
		t.Setenv("NO_COLOR", test.noColor)
		if got := Coloured(terminal); got != test.want {
			t.Errorf("TERM=%s NO_COLOR=%s: coloured %t, want %t", test.term, test.noColor, got, test.want)
		}
	}
}
