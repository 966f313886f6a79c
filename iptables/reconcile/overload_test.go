package reconcile

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/iptables"
)

// The waits of package lease: after the second lapse, after the first by a CPU limit,
// and the longest.
const (
	againWait     = 5 * time.Second
	throttledWait = time.Minute
	longestWait   = 16 * time.Minute
)

// second is what happens in one.
type second struct {
	throttled, starved time.Duration
	arrived, dropped   uint64
	waiting, queued    uint64 // at its end
}

// limited is a process under a CPU limit: the seconds that it lives through.
type limited struct {
	mu   sync.Mutex
	load Load
	now  second
	last time.Time
}

func (l *limited) set(s second) {
	l.advance()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now = s
}

func (l *limited) advance() Load {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.last.IsZero() {
		part := time.Since(l.last).Seconds()
		times := func(n uint64) uint64 { return uint64(part * float64(n)) }
		l.load.Throttled += time.Duration(part * float64(l.now.throttled))
		l.load.Starved += time.Duration(part * float64(l.now.starved))
		l.load.Arrived, l.load.Dropped, l.load.Waiting = l.load.Arrived+times(l.now.arrived), l.load.Dropped+times(l.now.dropped), l.now.waiting
		l.load.Queued = l.now.queued
	}
	l.last = time.Now()
	return l.load
}

func underLimit(k *Reconciler) *limited {
	l := &limited{load: Load{Limit: 0.1}}
	k.cfg.Kernel.Load = func([]iptables.Endpoint) Load { return l.advance() }
	return l
}

func TestCauseOfALapse(t *testing.T) {
	two := planFor("10.96.0.10", "169.254.20.10")
	for _, tc := range []struct {
		name  string
		lives second
		says  string // and the rest does not
		wait  time.Duration
	}{
		{"throttled", second{throttled: time.Second, arrived: 100}, "CPU limit of 100m", throttledWait},
		{"starved", second{starved: time.Second}, "others had the processors", 0},
		{"stopped or hung", second{}, "no answer", 0},
	} {
		inBubble(t, tc.name, func(t *testing.T, n *node, k *Reconciler) {
			l := underLimit(k)
			attached(t, k, two, n)
			l.set(tc.lives)
			settle(2 * time.Second)
			n.set(func() { clear(n.answers) })
			settle(2 * time.Second)
			n.answer(two)
			l.set(second{})
			got := n.logs()
			if strings.Count(got, "\n") > 0 || !strings.Contains(got, "10.96.0.10 169.254.20.10: the lease ran out") || !strings.Contains(got, tc.says) {
				t.Errorf("log: %q", got)
			}
			if strings.Contains(got, "raise the") != (tc.says != "no answer") {
				t.Errorf("the remedy is not that of the cause: %q", got)
			}
			settle(tc.wait / 2)
			if tc.wait > 0 && k.State() != Detached {
				t.Error("attached within the wait")
			}
			settle(tc.wait + time.Second)
			if k.State() != Attached {
				t.Error("not attached")
			}
		})
	}
}
