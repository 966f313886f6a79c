package top

import (
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack/groups"
	"github.com/trackless-dns/trackless/internal/figure"
)

// A Reading is what one pass over the table found.
type Reading struct {
	At      time.Time
	Entries uint64 // the kernel's count
	Limit   uint64 // 0: none
	Total   groups.Counts
	// Rows are by each groups.By.
	Rows map[groups.By][]groups.Row
	// Per is the time since the reading before, 0 at the first.
	Per time.Duration
	// Avoided are the DNS entries that instances of Trackless here keep out of the table,
	// nil where there are none.
	Avoided *uint64
	// Names says where names are from. Problem is what is wrong with this reading, if
	// anything.
	Names, Problem string
}

// A Screen is the last reading, and what the keys have set.
type Screen struct {
	Node     string
	Interval time.Duration
	By       groups.By
	Colour   bool

	width, height int
	sort          int // index in sortable
	filter        string
	typing        bool
	scroll        int
	shown, newest *Reading // they differ while the screen is frozen
	frozen        bool
}

// read takes a reading, and shows it unless the screen is frozen.
func (s Screen) read(r Reading) Screen {
	s.newest = &r
	if !s.frozen {
		s.shown = s.newest
	}
	return s
}

// pressed does what a key asks for.
func (s Screen) pressed(key string) (_ Screen, quit bool) {
	if s.typing {
		return s.typed(key), false
	}
	switch key {
	case "q", keyInterrupt, keyEscape:
		return s, true
	case "s":
		s.sort, s.scroll = (s.sort+1)%len(sortable), 0
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
		s.scroll = min(s.scroll, max(len(s.shown.Rows[s.By])-1, 0))
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
	all := groups.All()
	at := slices.Index(all, s.By)
	page := max(s.height-10, 1)
	switch key {
	case keyTab, keyRight:
		s.By, s.scroll = all[(at+1)%len(all)], 0
	case keyShiftTab, keyLeft:
		s.By, s.scroll = all[(at+len(all)-1)%len(all)], 0
	case "1", "2", "3", "4", "5", "6":
		s.By, s.scroll = all[key[0]-'1'], 0
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

const waiting = "reading the table ..."

// lines returns the screen: at most height lines, none longer than width.
func (s Screen) lines() []string {
	if s.width == 0 || s.height == 0 {
		return nil // the terminal does not say
	}
	help := s.fitted("  ", "q quit", "tab group", "s sort", "/ filter", "space freeze", "up/down scroll", "1-6 group")
	if s.shown == nil {
		return []string{s.title(), waiting, "", help[0]}
	}
	head := append([]string{s.title()}, s.summary()...)
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
	parts := []string{"trackless conntrack top", s.Node}
	if s.shown != nil {
		parts = append(parts, s.shown.At.Format(time.TimeOnly))
	}
	parts = append(parts, "every "+s.Interval.String())
	if s.frozen {
		parts = append([]string{"FROZEN"}, parts...)
	}
	return s.painted(s.fitted("  ", parts...)[0], cli.Bold)
}

// summary is the whole table in a line or two.
func (s Screen) summary() []string {
	r := s.shown
	parts := []string{figure.Entries(r.Entries, r.Limit)}
	if r.Limit > 0 {
		parts[0] += " (" + figure.Fill(r.Entries, r.Limit) + ")"
	}
	if r.Per > 0 {
		t := Table{Per: r.Per}
		parts = append(parts, t.perSecond(&groups.Row{Counts: r.Total})+" new/s")
	}
	parts = append(parts, figure.Thousands(r.Total.Unreplied)+" unreplied", figure.Thousands(r.Total.DNS)+" DNS")
	if r.Avoided != nil {
		parts = append(parts, figure.Thousands(*r.Avoided)+" DNS avoided")
	}
	return s.fitted("  ", append(parts, r.Names)...)
}

// tabs names what entries can be counted by, with the choice in brackets.
func (s Screen) tabs() string {
	parts := []string{"by"}
	for _, b := range groups.All() {
		word := b.String()
		if b == s.By {
			word = "[" + word + "]"
		}
		parts = append(parts, word)
	}
	line := s.fitted(" ", parts...)[0]
	return s.fitted("  ", line, "sorted by "+sortable[s.sort])[0]
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
	t := Table{By: s.By, Limit: s.shown.Limit, Per: s.shown.Per, Sort: sortable[s.sort]}
	for _, r := range s.shown.Rows[s.By] {
		if strings.Contains(strings.ToLower(r.Name), strings.ToLower(s.filter)) {
			t.Rows = append(t.Rows, r)
		}
	}
	return t.Lines(s.width)
}
