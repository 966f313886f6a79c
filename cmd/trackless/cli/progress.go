package cli

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trackless-dns/trackless/internal/figure"
)

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

// StartProgress counts what, of which about total are expected.
func StartProgress(w io.Writer, what string, total uint64) *progress {
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
