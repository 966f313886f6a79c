package cli

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trackless-dns/trackless/conntrack/reread"
	"github.com/trackless-dns/trackless/internal/figure"
)

// Progress shows on w how much of a long table is read.
func Progress(w io.Writer) reread.Progress { return progressOn{w} }

type progressOn struct{ w io.Writer }

func (p progressOn) Begin(what string, total uint64) reread.Counter {
	return startProgress(p.w, what, total)
}

func (p progressOn) Again(err error, attempt int) {
	_, _ = fmt.Fprintf(p.w, "trackless: %v; reading it again (attempt %d of %d)\n", err, attempt, reread.Attempts)
}

// A progress shows on a terminal how far long work is. It shows nothing for the
// first half second, and nothing at all where nobody watches.
type progress struct {
	n    atomic.Uint64
	done chan struct{}
	end  sync.WaitGroup
}

const (
	progressDelay    = 500 * time.Millisecond
	progressInterval = 200 * time.Millisecond
)

// startProgress counts what, of which about total are expected.
func startProgress(w io.Writer, what string, total uint64) *progress {
	p := &progress{done: make(chan struct{})}
	if !IsTerminal(w) || DumbTerminal() {
		return p
	}
	p.end.Go(func() {
		timer := time.NewTimer(progressDelay)
		defer timer.Stop()
		shown := false
		for {
			select {
			case <-p.done:
				if shown {
					_, _ = fmt.Fprint(w, ClearLine)
				}
				return
			case <-timer.C:
				_, _ = fmt.Fprintf(w, "\r%s of about %s %s", figure.Thousands(p.n.Load()), figure.Thousands(total), what)
				shown = true
				timer.Reset(progressInterval)
			}
		}
	})
	return p
}

func (p *progress) Step() { p.n.Add(1) }

func (p *progress) Stop() {
	close(p.done)
	p.end.Wait()
}
