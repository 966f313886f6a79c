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
	kinds map[string]*kind
}

type kind struct {
	last time.Time
	held int
}

// New returns a Limiter that writes to the log.
func New(log Logger) *Limiter { return &Limiter{log: log, kinds: map[string]*kind{}} }

// Warningf writes a line, unless one of its kind was written a moment ago. There
// are few kinds, and they are constants.
func (l *Limiter) Warningf(of, format string, args ...any) {
	held, ok := l.due(of, time.Now())
	switch {
	case !ok:
	case held > 0:
		l.log.Warningf("%s (and %d more of this kind since the last one)", fmt.Sprintf(format, args...), held)
	default:
		l.log.Warningf(format, args...)
	}
}

func (l *Limiter) due(of string, now time.Time) (held int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.kinds[of]
	if k == nil {
		k = &kind{}
		l.kinds[of] = k
	}
	if !k.last.IsZero() && now.Sub(k.last) < Interval {
		k.held++
		return 0, false
	}
	held = k.held
	k.last, k.held = now, 0
	return held, true
}
