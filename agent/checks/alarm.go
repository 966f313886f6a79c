package checks

import (
	"sync"
	"time"

	"github.com/trackless-dns/trackless/internal/wakeup"
)

// alarm interrupts the reads of lease probes that take too long. A read deadline, a timer
// of the runtime, would wake an idle process once more for each probe although the answer
// came.
type alarm struct {
	timer wakeup.Timer

	mu     sync.Mutex
	probes []probe // of whose reads none is over yet, nil for none
}

// newAlarm returns one that is closed with close.
func newAlarm() *alarm {
	a := &alarm{timer: wakeup.New()}
	go func() {
		for a.timer.Wait() == nil {
			a.ring()
		}
	}()
	return a
}

// set has the reads of the probes interrupted after the time, until stop is called. It
// reports whether it did: it looks after the probes of one caller at a time.
func (a *alarm) set(after time.Duration, probes []probe) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.probes != nil {
		return false
	}
	for _, p := range probes {
		if p.conn.SetReadDeadline(time.Time{}) != nil {
			return false
		}
	}
	a.probes = probes
	a.timer.Reset(after)
	return true
}

func (a *alarm) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.probes = nil
	a.timer.Stop()
}

func (a *alarm) ring() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.probes {
		_ = p.conn.SetReadDeadline(longAgo) // a closed socket ends the read, too
	}
}

func (a *alarm) close() error { return a.timer.Close() }
