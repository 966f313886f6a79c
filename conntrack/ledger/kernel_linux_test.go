package ledger

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// problems are the failures of one run.
type problems struct {
	mu   sync.Mutex
	list []string
}

// Errorf adds a problem.
func (p *problems) Errorf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list = append(p.list, fmt.Sprintf(format, args...))
}

// kernelClock is a clock that can show the time when the kernel received a datagram. The
// server may run later, and milliseconds decide whether a flow is a stream.
type kernelClock struct {
	noting   sync.Mutex
	received atomic.Int64 // nanoseconds since 1970, 0 for now
}

func (c *kernelClock) now() time.Time {
	if at := c.received.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Now().Round(0) // as timestamps, without the monotonic clock
}

// at makes now return the given time while do runs.
func (c *kernelClock) at(received time.Time, do func()) {
	c.noting.Lock()
	defer c.noting.Unlock()
	c.received.Store(received.UnixNano())
	do()
	c.received.Store(0)
}

// The steps of a client. reply sends a query that says after how long its response must
// come. answer waits for a response, end for the end of the connection. reset makes the
// client reset the connection when it is done.
type (
	reply time.Duration
	pause time.Duration
	step  string
)
