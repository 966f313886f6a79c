package server

import (
	"bytes"
	"slices"
	"sync"
	"time"
)

// recentLog keeps the end of the log in memory, for `trackless support-bundle`.
// The standard output goes to the program that started us, often out of reach
// from inside a container. It is an
// io.Writer that takes one line with each call, as package log writes them.
//
// Warnings and errors are kept apart as well, so that a log of every query does
// not push them out.
type recentLog struct {
	mu      sync.Mutex
	all     lineRing
	serious lineRing
	line    []byte // scratch
	now     func() time.Time
}

// The sizes of the log in memory, in bytes.
const (
	recentLines   = 384 << 10
	recentSerious = 128 << 10
)

// logTime has a fixed width, so that lines sort by time.
const logTime = "2006-01-02T15:04:05.000Z"

func newRecentLog() *recentLog {
	return &recentLog{
		all:     lineRing{buf: make([]byte, recentLines)},
		serious: lineRing{buf: make([]byte, recentSerious)},
		now:     time.Now,
	}
}

// Write implements io.Writer; it never fails.
func (l *recentLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.line = l.now().UTC().AppendFormat(l.line[:0], logTime)
	l.line = append(l.line, ' ')
	l.line = append(l.line, bytes.TrimRight(p, "\n")...)
	l.line = append(l.line, '\n')
	l.all.add(l.line)
	if isSerious(p) {
		l.serious.add(l.line)
	}
	return len(p), nil
}

// isSerious recognises what CoreDNS logs as a warning or worse, as text or as
// JSON.
func isSerious(line []byte) bool {
	for _, level := range []string{"[WARNING]", "[ERROR]", "[FATAL]", "[PANIC]"} {
		if bytes.HasPrefix(line, []byte(level)) {
			return true
		}
	}
	for _, level := range []string{`"level":"warning"`, `"level":"error"`, `"level":"fatal"`} {
		if bytes.Contains(line, []byte(level)) {
			return true
		}
	}
	return false
}

// Log returns whole lines in the order in which they were written, each with
// its time before it.
func (l *recentLog) Log() []byte {
	l.mu.Lock()
	all, serious := l.all.lines(), l.serious.lines()
	l.mu.Unlock()
	if !l.all.full || len(all) == 0 {
		return all
	}
	// Serious lines that the other ring has lost go before it. A time may
	// repeat: such a line is in both and counts once.
	first := all[:min(len(all), len(logTime))]
	var older []byte
	for line := range bytes.Lines(serious) {
		if bytes.Compare(line[:min(len(line), len(logTime))], first) < 0 {
			older = append(older, line...)
		}
	}
	return slices.Concat(older, all)
}

// lineRing holds the last lines that fit.
type lineRing struct {
	buf  []byte
	next int
	full bool // the oldest lines are gone
}

func (r *lineRing) add(line []byte) {
	if len(line) > len(r.buf) {
		line = line[len(line)-len(r.buf):]
	}
	n := copy(r.buf[r.next:], line)
	r.next += n
	if n < len(line) || r.next == len(r.buf) {
		r.next = copy(r.buf, line[n:])
		r.full = true
	}
}

// lines returns a copy, from the first line that is whole.
func (r *lineRing) lines() []byte {
	if !r.full {
		return slices.Clone(r.buf[:r.next])
	}
	all := slices.Concat(r.buf[r.next:], r.buf[:r.next])
	_, whole, _ := bytes.Cut(all, []byte{'\n'})
	return whole
}
