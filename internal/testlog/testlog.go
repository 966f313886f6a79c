// Package testlog is a log that tests read.
package testlog

import (
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Lines implements logger.Logger. It keeps the lines, each behind its level and a space. The
// zero value is ready, and it is safe for concurrent use.
type Lines struct {
	mu  sync.Mutex
	all []string
}

func (l *Lines) add(level, format string, args []any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, level+" "+fmt.Sprintf(format, args...))
}

// Debugf implements logger.Logger.
func (l *Lines) Debugf(format string, args ...any) { l.add("debug", format, args) }

// Infof implements logger.Logger.
func (l *Lines) Infof(format string, args ...any) { l.add("info", format, args) }

// Warningf implements logger.Logger.
func (l *Lines) Warningf(format string, args ...any) { l.add("warning", format, args) }

// Errorf implements logger.Logger.
func (l *Lines) Errorf(format string, args ...any) { l.add("error", format, args) }

// All returns the lines.
func (l *Lines) All() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

// Levels returns the levels of the lines.
func (l *Lines) Levels() (out []string) {
	for _, line := range l.All() {
		level, _, _ := strings.Cut(line, " ")
		out = append(out, level)
	}
	return out
}
