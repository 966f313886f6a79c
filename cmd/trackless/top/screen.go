package top

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
)

// A Page is a reading as a screen shows it.
type Page struct {
	At time.Time
	// Summary are the parts of the lines above the groups. Problem is what is wrong with
	// the reading, if anything.
	Summary []string
	Problem string
	// Table returns a header, and a line for each group.
	Table func(View) []string
}

// A View is what the keys have chosen.
type View struct {
	By, Sort int // indexes in Ways and Sorts of the screen
	Filter   string
	Width    int
}

// Has reports whether the filter leaves a name.
func (v View) Has(name string) bool {
	return strings.Contains(strings.ToLower(name), strings.ToLower(v.Filter))
}

// A Screen is the last page, and what the keys have set.
type Screen struct {
	Title, Node string
	Waiting     string // shown before the first page
	Interval    time.Duration
	Ways, Sorts []string // what can be counted, and sorted, by
	By          int      // index in Ways
	Colour      bool

	width, height int
	sort          int // index in Sorts
	filter        string
	typing        bool
	scroll        int
	shown, newest *Page // they differ while the screen is frozen
	frozen        bool
}

// Sized is the screen in a terminal of that size.
func (s Screen) Sized(width, height int) Screen {
	s.width, s.height = width, height
	return s
}

// With takes a page, and shows it unless the screen is frozen.
func (s Screen) With(p Page) Screen {
	s.newest = &p
	if !s.frozen {
		s.shown = s.newest
	}
	return s
}

// Press does what a key asks for.
func (s Screen) Press(key string) (_ Screen, quit bool) {
	if s.typing {
		return s.typed(key), false
	}
	switch key {
	case "q", keyInterrupt, keyEscape:
		return s, true
	case "s":
		s.sort, s.scroll = (s.sort+1)%len(s.Sorts), 0
	case "/":
		s.typing, s.filter = true, ""
	case " ":
		s.frozen = !s.frozen
		if !s.frozen {
			s.shown = s.newest
		}
	default:
		s = s.moved(key)
	}
	if s.shown != nil {
		s.scroll = min(s.scroll, max(len(s.table())-2, 0))
	}
	return s, false
}

// typed edits the filter.
func (s Screen) typed(key string) Screen {
	s.scroll = 0
	switch key {
	case keyEnter:
		s.typing = false
	case keyEscape, keyInterrupt:
		s.typing, s.filter = false, ""
	case keyBackspace:
		if _, size := utf8.DecodeLastRuneInString(s.filter); size > 0 {
			s.filter = s.filter[:len(s.filter)-size]
		}
	default:
		if utf8.RuneCountInString(key) == 1 {
			s.filter += key
		}
	}
	return s
}

// moved goes to another group, or scrolls.
func (s Screen) moved(key string) Screen {
	all := len(s.Ways)
	page := max(s.height-10, 1)
	switch key {
	case keyTab, keyRight:
		s.By, s.scroll = (s.By+1)%all, 0
	case keyShiftTab, keyLeft:
		s.By, s.scroll = (s.By+all-1)%all, 0
	case "1", "2", "3", "4", "5", "6", "7", "8", "9":
		if i := int(key[0] - '1'); i < all {
			s.By, s.scroll = i, 0
		}
	case keyDown, "j":
		s.scroll++
	case keyUp, "k":
		s.scroll = max(s.scroll-1, 0)
	case keyPageDown:
		s.scroll += page
	case keyPageUp:
		s.scroll = max(s.scroll-page, 0)
	case keyHome:
		s.scroll = 0
	}
	return s
}

// Lines returns the screen: at most height lines, none longer than width.
func (s Screen) Lines() []string {
	if s.width == 0 || s.height == 0 {
		return nil // the terminal does not say
	}
	help := s.fitted("  ", "q quit", "tab group", "s sort", "/ filter", "space freeze", "up/down scroll", fmt.Sprintf("1-%d group", len(s.Ways)))
	if s.shown == nil {
		return []string{s.title(), s.Waiting, "", help[0]}
	}
	head := append([]string{s.title()}, s.fitted("  ", s.shown.Summary...)...)
	head = append(head, s.tabs())
	if s.typing || s.filter != "" {
		cursor := ""
		if s.typing {
			cursor = "_"
		}
		head = append(head, Shortened("filter: "+s.filter+cursor, s.width))
	}
	if s.shown.Problem != "" {
		head = append(head, Shortened(s.shown.Problem, s.width))
	}
	head = append(head, "")
	table := s.table()
	header, rows := table[0], table[1:]
	room := max(s.height-len(head)-2, 1) // the header of the table, and the help
	first := min(s.scroll, max(len(rows)-room, 0))
	rows = rows[first:min(first+room, len(rows))]
	return slices.Concat(head, []string{s.painted(header, cli.Bold)}, rows, help[:1])
}

func (s Screen) painted(text, code string) string { return cli.Painted(text, code, s.Colour) }

func (s Screen) title() string {
	parts := []string{s.Title, s.Node}
	if s.shown != nil {
		parts = append(parts, s.shown.At.Format(time.TimeOnly))
	}
	parts = append(parts, "every "+s.Interval.String())
	if s.frozen {
		parts = append([]string{"FROZEN"}, parts...)
	}
	return s.painted(s.fitted("  ", parts...)[0], cli.Bold)
}

// tabs names what can be counted by, with the choice in brackets.
func (s Screen) tabs() string {
	parts := []string{"by"}
	for i, word := range s.Ways {
		if i == s.By {
			word = "[" + word + "]"
		}
		parts = append(parts, word)
	}
	line := s.fitted(" ", parts...)[0]
	return s.fitted("  ", line, "sorted by "+s.Sorts[s.sort])[0]
}

// fitted joins parts into lines that are not longer than the screen is wide. A part that
// alone is longer is shortened.
func (s Screen) fitted(between string, parts ...string) (lines []string) {
	for _, part := range parts {
		part = Shortened(part, s.width)
		last := len(lines) - 1
		if last >= 0 && utf8.RuneCountInString(lines[last]+between+part) <= s.width {
			lines[last] += between + part
			continue
		}
		lines = append(lines, part)
	}
	return lines
}

func (s Screen) table() []string {
	return s.shown.Table(View{By: s.By, Sort: s.sort, Filter: s.filter, Width: s.width})
}
