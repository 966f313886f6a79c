// Package loglimit holds back log lines of a kind of which one has just been
// written: what a client can bring about very often must not fill the log.
package loglimit

import (
	"fmt"
	"sync"
	"time"
)

// Interval is the time between two lines of a kind.
const Interval = 10 * time.Second

// A Logger takes warnings.
type Logger interface {
	Warningf(format string, args ...any)
}

// A Limiter writes the first line of a kind at once, and then one in each Interval
// at most, which says how many were held back. Its methods are safe for concurrent
// use.
type Limiter struct {
	log Logger

	mu    sync.Mutex
	kinds map[string]*Budget
}

// A Budget lets some events of each interval pass, and counts the others. The zero
// value is ready, and its method safe for concurrent use.
type Budget struct {
	mu     sync.Mutex
	since  time.Time
	passed int // since then
	held   int // since the last that passed
}

// Take reports whether an event may pass, where most may in the time every; held is
// how many did not since the last one.
func (b *Budget) Take(now time.Time, most int, every time.Duration) (held int, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if age := now.Sub(b.since); age >= every || age < 0 { // the latter where tests have a clock each
		b.since, b.passed = now, 0
	}
	if b.passed == most {
		b.held++
		return 0, false
	}
	held = b.held
	b.passed, b.held = b.passed+1, 0
	return held, true
}

// New returns a Limiter that writes to the log.
func New(log Logger) *Limiter { return &Limiter{log: log, kinds: map[string]*Budget{}} }

// Warningf writes a line, unless one of its kind was written a moment ago. There
// are few kinds, and they are constants.
func (l *Limiter) Warningf(of, format string, args ...any) {
	held, ok := l.budget(of).Take(time.Now(), 1, Interval)
	switch {
	case !ok:
	case held > 0:
		l.log.Warningf("%s (and %d more of this kind since the last one)", fmt.Sprintf(format, args...), held)
	default:
		l.log.Warningf(format, args...)
	}
}

func (l *Limiter) budget(of string) *Budget {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.kinds[of]
	if b == nil {
		b = &Budget{}
		l.kinds[of] = b
	}
	return b
}
