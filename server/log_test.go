package server

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// tickingLog is a log of the given sizes whose clock moves on a second with
// every line.
func tickingLog(all, serious int) *recentLog {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return &recentLog{
		all: lineRing{buf: make([]byte, all)}, serious: lineRing{buf: make([]byte, serious)},
		now: func() time.Time { at = at.Add(time.Second); return at },
	}
}

func TestRecentLogKeepsTheEnd(t *testing.T) {
	query := func(i int) string { return fmt.Sprintf("[INFO] 10.244.0.3:%05d A example.org.\n", 10000+i) }
	for _, tc := range []struct {
		name  string
		write []string
		want  func(lines []string) bool
		says  string
	}{
		{"nothing", nil, func(lines []string) bool { return len(lines) == 0 }, "no lines"},
		{"a few", []string{"[INFO] one\n", "[ERROR] two\n", "[INFO] three"}, func(lines []string) bool {
			return slices.Equal(lines, []string{"2026-01-02T03:04:06.000Z [INFO] one", "2026-01-02T03:04:07.000Z [ERROR] two", "2026-01-02T03:04:08.000Z [INFO] three"})
		}, "every line once, with its time"},
		{"more than fit", func() (lines []string) {
			for i := range 100 {
				lines = append(lines, query(i))
			}
			return lines
		}(), func(lines []string) bool {
			return len(lines) > 5 && len(lines) < 20 && strings.HasSuffix(lines[len(lines)-1], strings.TrimSpace(query(99))) &&
				strings.HasPrefix(lines[0], "2026-01-02T03:0")
		}, "the last lines, whole"},
		{"an error before many queries", func() []string {
			lines := []string{"[INFO] starting\n", "[ERROR] plugin/notrack: lapsed\n"}
			for i := range 100 {
				lines = append(lines, query(i))
			}
			return lines
		}(), func(lines []string) bool {
			return strings.HasSuffix(lines[0], "[ERROR] plugin/notrack: lapsed") && !strings.Contains(lines[1], "ERROR") && slices.IsSorted(lines)
		}, "the error first, then the last lines"},
		{"an error as JSON", append([]string{`{"level":"error","msg":"lapsed"}` + "\n"}, slices.Repeat([]string{query(1)}, 50)...),
			func(lines []string) bool { return strings.Contains(lines[0], "lapsed") }, "the error first"},
		{"errors alone", slices.Repeat([]string{"[ERROR] plugin/errors: 2 example.org. A: timeout\n"}, 200),
			func(lines []string) bool { return slices.IsSorted(lines) && len(slices.Compact(lines)) == len(lines) }, "each once"},
		{"a line longer than the log", []string{"[INFO] short\n", strings.Repeat("x", 5000) + "\n", "[INFO] last\n"},
			func(lines []string) bool { return strings.HasSuffix(lines[len(lines)-1], "[INFO] last") }, "what comes after it"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := tickingLog(1000, 300)
			for _, line := range tc.write {
				if n, err := l.Write([]byte(line)); n != len(line) || err != nil {
					t.Fatalf("wrote %d bytes, error %v", n, err)
				}
			}
			var lines []string
			if text := strings.TrimSuffix(string(l.Log()), "\n"); text != "" {
				lines = strings.Split(text, "\n")
			}
			if !tc.want(lines) {
				t.Errorf("want %s, got\n%s", tc.says, strings.Join(lines, "\n"))
			}
		})
	}
}

// A log of every query goes through here.
func BenchmarkRecentLog(b *testing.B) {
	l := newRecentLog()
	line := []byte("[INFO] 10.244.0.3:41234 - 4711 \"A IN example.org. udp 40 false 512\" NOERROR qr,rd,ra 56 0.000123s\n")
	b.ReportAllocs()
	for b.Loop() {
		_, _ = l.Write(line)
	}
}
